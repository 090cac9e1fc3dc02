"""The emoji data set: four icon sets drawn at one size, as TFDS ArrayRecord, built on first use.

A data set is one size and either the plain pictures or the skin tones; `open_emoji` joins them. It
lies in a folder named after its content (sources, splits, renderer), so a change of any of them is
another data set and no reader can mix two. TensorFlow is never imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.data.captions import EmojiFacts
from unclip_jax.data.emoji_catalogue import ASSETS, STYLES, Icon, load_icons
from unclip_jax.data.emoji_render import render_all
from unclip_jax.data.emoji_splits import SPLITS, assign_splits
from unclip_jax.data.images import decode_image
from unclip_jax.errors import UserError

VERSION = "1.0.0"
SIZES = (64, 256, 1024)
_WRITING = threading.Lock()  # `_quiet_tfds` changes what the whole process prints


def cache_root(cache_dir: str | None = None) -> Path:
    """Where built data sets go: `cache_dir`, else $UNCLIP_CACHE, else ~/.cache/unclip_jax."""
    return Path(cache_dir or os.environ.get("UNCLIP_CACHE") or "~/.cache/unclip_jax").expanduser()


def fingerprint() -> str:
    """12 hex digits that change with the sources, the splits, the renderer or this version."""
    import resvg_py

    digest = hashlib.sha256(f"{VERSION}/{resvg_py.__version__}".encode())
    for path in sorted(ASSETS.rglob("*.json*")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def list_icons() -> list[tuple[Icon, str, str]]:
    """Every captioned picture of the four sets: the icon, its SVG document and its split.

    The order is by label, then style, and so is the order in the built data set.
    """
    found = [pair for style in STYLES for pair in load_icons(style)]
    found.sort(key=lambda pair: (pair[0].entry.label, list(STYLES).index(pair[0].style)))
    cells: dict[str, list[str]] = {}
    for icon, _ in found:
        styles = cells.setdefault(icon.entry.concept, [])
        if icon.style not in styles:
            styles.append(icon.style)
    splits = assign_splits(cells)
    return [(icon, svg, splits[icon.entry.concept, icon.style]) for icon, svg in found]


def build_emoji(
    size: int, variants: bool, cache_dir: str | None = None, limit: int | None = None
) -> Path:
    """Draw one data set if it is not there yet, and return its folder.

    The folder appears whole or not at all: it is written beside its place and renamed, and of two
    processes that build it at once the first to finish wins.

    Args:
        size: side of the pictures in pixels.
        variants: the pictures with a skin tone; otherwise the ones without.
        limit: the first pictures only, for tests.
    """
    name = f"{'tones' if variants else 'plain'}_{size}" + (f"_first{limit}" if limit else "")
    folder = cache_root(cache_dir) / f"emoji-{fingerprint()}" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cache folder {folder.parent}: {error.strerror}; set $UNCLIP_CACHE to another"
        ) from None
    try:
        chosen = [item for item in list_icons() if item[0].entry.has_tone == variants][:limit]
        what = f"drawing {len(chosen)} emoji at {size} px (once)"
        with _progress(what, len(chosen)) as advance:
            pngs = render_all([svg for _, svg, _ in chosen], size, advance)
        built = _write(scratch, chosen, pngs)
        with contextlib.suppress(OSError):  # ENOTEMPTY: another process was faster, take its result
            os.rename(built, folder)
        if not folder.is_dir():
            raise UserError(f"cache folder {folder}: cannot be written")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def draw_all(size: int = 64) -> tuple[list[Icon], np.ndarray]:
    """Every captioned picture, skin tones too, in the order of `list_icons`.

    Returns:
        the icons, and their pictures [N, size, size, 3] uint8.
    """
    items = list_icons()
    with _progress(f"drawing {len(items)} emoji at {size} px", len(items)) as advance:
        pngs = render_all([svg for _, svg, _ in items], size, advance)
    icons = [icon for icon, _, _ in items]
    pairs = zip(icons, pngs, strict=True)
    return icons, np.stack([decode_image(png, name=icon.slug) for icon, png in pairs])


def _write(scratch: Path, chosen: Sequence[tuple[Icon, str, str]], pngs: Sequence[bytes]) -> Path:
    """Write the ArrayRecord files; the folder that holds them."""
    import tensorflow_datasets as tfds

    pictures = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    text = ("concept", "style", "label", "group", "subgroup", "slug", "split")
    features = {"image": pictures, "tags": tfds.features.Sequence(tfds.features.Text())}
    features |= {key: tfds.features.Text() for key in text}

    class Emoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)
        # Nothing is downloaded and no source file is looked up (TFDS would need another package).
        code_path = None
        url_infos = None

        def _info(self) -> tfds.core.DatasetInfo:
            # Without shuffling the order is that of the generator, sorted by label.
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                description="Emoji of four icon sets on white, with captions.",
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            present = {split for _, _, split in chosen}
            return {split: self._generate_examples(split) for split in SPLITS if split in present}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, ((icon, _, own_split), png) in enumerate(zip(chosen, pngs, strict=True)):
                if own_split == split:
                    yield index, _example(icon, png, split)

    with _WRITING, _quiet_tfds():
        builder = Emoji(data_dir=scratch, file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_dir)


def _example(icon: Icon, png: bytes, split: str) -> dict[str, Any]:
    entry = icon.entry
    return {
        "image": io.BytesIO(png),
        "concept": entry.concept,
        "style": icon.style,
        "label": entry.label,
        "tags": list(entry.tags),
        "group": entry.group,
        "subgroup": entry.subgroup,
        "slug": icon.slug,
        "split": split,
    }


def read_facts(example: dict[str, Any]) -> EmojiFacts:
    """What one stored example says about its picture."""

    def text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    keys = ("label", "concept", "style", "group", "subgroup", "slug", "split")
    return EmojiFacts(
        tags=tuple(text(tag) for tag in example["tags"]),
        **{key: text(example[key]) for key in keys},
    )


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """TFDS draws bars, prints and logs of its own for what takes a second here."""
    import logging

    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    tfds.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, or a plain line at each tenth where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
        return
    print(what, file=sys.stderr, flush=True)
    done = 0
    lock = threading.Lock()

    def advance() -> None:
        nonlocal done
        with lock:
            done += 1
            if done * 10 // total > (done - 1) * 10 // total:
                print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

    yield advance
