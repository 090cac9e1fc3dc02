"""An edit being drawn: the model, the pictures it starts from, and how it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jax import Array

from unclip_jax.data.images import resize_and_crop
from unclip_jax.generation.bundle import Bundle
from unclip_jax.generation.keys import fold_keys, image_keys
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.text_to_image import upsampled_sizes
from unclip_jax.samples import Samples


@dataclass(frozen=True, eq=False)
class Job:
    """What all pictures of an edit share."""

    bundle: Bundle
    pictures: Sequence[np.ndarray]
    """[H, W, 3] uint8 each."""
    sampling: SamplingConfig
    seed: int = 0
    prior: str = "diffusion"
    upsample: int | None = None
    """Side to which decoded pictures are upsampled; None is the decoder's own."""

    @cached_property
    def squares(self) -> np.ndarray:
        """[P, S, S, 3] uint8, the central squares of the pictures at the decoder's side."""
        return np.stack([resize_and_crop(one, self.bundle.side) for one in self.pictures])

    @cached_property
    def embeddings(self) -> np.ndarray:
        """[P, E] float32, CLIP's of the pictures' central squares, at CLIP's own side."""
        return self.bundle.encode_image(clip_squares(self.bundle, self.pictures))

    @cached_property
    def x_T(self) -> np.ndarray:
        """[P, S, S, 3] float32, the noise that decodes to the pictures without a caption."""
        return self.bundle.invert(
            self.squares, self.embeddings, [""] * len(self.pictures), self.sampling
        )

    def keys(self, candidates: np.ndarray, number: int) -> Array:
        """[N] typed keys of stage `number` on the way: 0 prior, 1 decoder, 2 and 3 upsamplers.

        Args:
            candidates: [N] int; picture i of a seed has the keys that text_to_image gives it.
        """
        return fold_keys(image_keys(self.seed, candidates.tolist()), number)

    def finish(self, decoded: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Decoded pictures at the side that was asked for.

        Args:
            decoded: [N, S, S, 3] float32 in [-1, 1] if the job upsamples, else uint8.
        """
        images, sizes = decoded, upsampled_sizes(self.upsample)
        for number, size in enumerate(sizes, 2):
            images = self.bundle.upsample(
                images,
                self.keys(candidates, number),
                size,
                self.sampling,
                as_float=size != sizes[-1],
            )
        return images


def clip_squares(bundle: Bundle, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """[P, S, S, 3] uint8, the central squares at the side that the model's CLIP reads."""
    recipe = bundle.clip.recipe
    side = recipe.model.image_size  # pyright: ignore[reportAttributeAccessIssue]
    return np.stack([resize_and_crop(one, side) for one in pictures])


def ranked(
    images: np.ndarray, facts: Sequence[dict[str, Any]], score: Callable[[], np.ndarray]
) -> Samples:
    """Pictures, the best first where there are several.

    Args:
        score: [N] float32 of each picture; not asked about one alone.
    """
    if len(images) == 1:
        return Samples(images, None, tuple(facts))
    scores = score()
    order = np.argsort(-scores, kind="stable")
    best = tuple(facts[i] for i in order)
    return Samples(images[order], None, best, tuple(float(scores[i]) for i in order))


def unit(vectors: np.ndarray) -> np.ndarray:
    """[N, E] at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
