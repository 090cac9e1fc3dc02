"""Pictures a second from each kind of source, beside torch's loader and webdataset.

    python benchmarks/input.py [--pictures 2000] [--side 256] [--workers 1 2] [--rounds 3]

Random JPEG pictures with captions, as a folder, as tar shards and as ArrayRecord. Both decode,
scale to 64 pixels and crop, tokenise with one tokenizer and make batches of 64, in another order
each epoch. An epoch is timed from opening the source. Workers are threads here and processes there,
what each side means by them; torch's read the same ArrayRecord files by the same library.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import OURS, Parts, Row, print_table, save, take_turns, timed
from unclip_jax.config import DataConfig
from unclip_jax.data.pipeline import make_batches
from unclip_jax.data.sources import open_source
from unclip_jax.data.tokenizer import Tokenizer, train_bpe

BATCH, SIZE, SHARD = 64, 64, 500
WORDS = ("red", "blue", "apple", "boat", "old", "photo", "of", "a", "two", "green", "car", "tree")
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "input.json")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = _draw(options.pictures, options.side)
        sources = {
            "folder": _write_folder(folder / "folder", pictures),
            "tar": _write_tar(folder / "tar", pictures),
            "array_record": _write_records(folder / "records", pictures),
        }
        tokenizer = train_bpe(WORDS, 600, 24)
        for kind, source in sources.items():
            for workers in options.workers:
                run = _sides(kind, source, tokenizer, workers, options.pictures)
                label = f"{kind}, {workers} worker{'s' if workers > 1 else ''}"
                rows += [replace(row, name=label) for row in take_turns(run, options.rounds)]
    print_table(f"seconds for {options.pictures} pictures of {options.side} pixels", rows)
    kept = ("pictures", "side", "workers", "rounds")
    save(options.out, rows, {name: getattr(options, name) for name in kept})


def _sides(
    kind: str, source: str, tokenizer: Tokenizer, workers: int, count: int
) -> dict[str, Callable[[], Parts]]:
    from benchmarks.rivals import torch_input as rival

    def ours() -> None:
        opened = open_source(DataConfig(source=source))
        batches = make_batches(
            opened,
            image_size=SIZE,
            batch_size=BATCH,
            tokenize=tokenizer,
            seed=0,
            threads=workers,
            repeat=False,
        )
        assert sum(len(batch["image"]) for batch in batches) == count

    def theirs() -> None:
        loader = rival.open_loader(kind, source, tokenizer, workers, SIZE, BATCH)
        assert sum(len(image) for image, _ in loader) == count

    label = "webdataset" if kind == "tar" else "torch DataLoader"
    return {OURS: timed(ours), label: timed(theirs)}


def _draw(count: int, side: int) -> list[tuple[bytes, str]]:
    """Smooth random pictures: a JPEG of noise would be all decoding of noise."""
    from PIL import Image

    random, found = np.random.default_rng(0), []
    for _ in range(count):
        small = random.integers(0, 256, (16, 16, 3), np.uint8)
        image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        found.append((out.getvalue(), " ".join(random.choice(WORDS, 6))))
    return found


def _write_folder(folder: Path, pictures: list[tuple[bytes, str]]) -> str:
    folder.mkdir()
    for number, (data, caption) in enumerate(pictures):
        (folder / f"{number:06d}.jpg").write_bytes(data)
        (folder / f"{number:06d}.txt").write_text(caption)
    return str(folder)


def _write_tar(folder: Path, pictures: list[tuple[bytes, str]]) -> str:
    folder.mkdir()
    for start in range(0, len(pictures), SHARD):
        with tarfile.open(folder / f"{start // SHARD:04d}.tar", "w") as shard:
            for number in range(start, min(start + SHARD, len(pictures))):
                data, caption = pictures[number]
                for ending, content in (("jpg", data), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{ending}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    return str(folder / "*.tar")


def _write_records(folder: Path, pictures: list[tuple[bytes, str]]) -> str:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "caption": tfds.features.Text(),
        }
    )

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path: Any = None
        url_infos: Any = None

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for number, (data, caption) in enumerate(pictures):
                yield number, {"image": io.BytesIO(data), "caption": caption}

    builder = Pictures(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return f"tfds:{builder.data_dir}"


if __name__ == "__main__":
    main()
