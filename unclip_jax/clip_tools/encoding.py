"""Texts and pictures of any size as embeddings of unit norm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from unclip_jax.data.images import BadImage, decode_image, picture_bytes, resize_and_crop
from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import Bundle
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.training.recipes.clip import CLIPRecipe

SECONDS_BETWEEN_LINES = 5


def clip_config(bundle: Bundle) -> CLIPConfig:
    """Of the model's CLIP."""
    recipe = bundle.clip.recipe
    assert isinstance(recipe, CLIPRecipe)
    return recipe.model


def encode_pictures(bundle: Bundle, pictures: Iterable[np.ndarray]) -> np.ndarray:
    """CLIP's embeddings of the central squares of pictures.

    Args:
        pictures: [H, W, 3] uint8 each, of any size; of an iterator one is in memory at a time.
    Returns:
        [N, E] float32, unit norm.
    Raises:
        UserError: there is no picture, or CLIP's weights make no finite numbers of one.
    """
    side = clip_config(bundle).image_size
    squares = [resize_and_crop(picture, side) for picture in pictures]
    if not squares:
        raise UserError("there is no picture: give one or more")
    return to_unit(bundle.encode_image(np.stack(squares)))


class FileEncoder:
    """Embeddings of the pictures of a folder.

    Args:
        threads: that read and decode.
        say: told of the progress, a line every few seconds.
    """

    encoded = 0
    """Pictures so far."""

    def __init__(
        self, bundle: Bundle, folder: Path, threads: int, say: Callable[[str], None]
    ) -> None:
        self._bundle, self._folder, self._threads, self._say = bundle, folder, threads, say
        self._side = clip_config(bundle).image_size
        self._began = self._said = time.monotonic()

    def encode(self, names: Sequence[str]) -> Iterator[np.ndarray | str]:
        """Of each picture the unit embedding [E] float32, or why there is none.

        While the devices work on some pictures, the threads read the next ones.
        """
        size = self._bundle.sampling.batch_size * len(jax.local_devices())
        groups = [names[start : start + size] for start in range(0, len(names), size)]
        with ThreadPoolExecutor(max(1, self._threads), thread_name_prefix="decode") as pool:
            waiting = [pool.submit(self._read, one) for one in names[:size]]
            for following in [*groups[1:], ()]:
                found = [future.result() for future in waiting]
                waiting = [pool.submit(self._read, one) for one in following]
                yield from self._embed(found)

    def _embed(self, found: list[np.ndarray | str]) -> list[np.ndarray | str]:
        squares = [one for one in found if not isinstance(one, str)]
        rows = iter(to_unit(self._bundle.encode_image(np.stack(squares))) if squares else ())
        self.encoded += len(squares)
        now = time.monotonic()
        if now - self._said > SECONDS_BETWEEN_LINES:
            self._say(f"{self.encoded:,} pictures, {self.encoded / (now - self._began):,.0f}/s")
            self._said = now
        return [one if isinstance(one, str) else next(rows) for one in found]

    def _read(self, name: str) -> np.ndarray | str:
        try:
            data = picture_bytes(self._folder / name, name=name)
            return resize_and_crop(decode_image(data, name=name), self._side)
        except BadImage as error:
            return error.reason


def encode_texts(bundle: Bundle, texts: Sequence[str]) -> np.ndarray:
    """CLIP's embeddings of texts: [N, E] float32, unit norm."""
    return to_unit(bundle.encode_text(texts))


def logit_scale(bundle: Bundle) -> float:
    """The factor on cosines with which CLIP was trained to tell pairs apart: 1 / temperature."""
    return float(np.exp(np.float32(bundle.clip.params["logit_scale"])))


def to_unit(vectors: np.ndarray) -> np.ndarray:
    """[..., E] with rows of unit norm; a zero row stays zero.

    Raises:
        UserError: a number is not finite.
    """
    if not np.isfinite(vectors).all():
        raise UserError("CLIP's embeddings are not finite: its weights are damaged, restore them")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
