"""One flipped bit in an ArrayRecord file: one record is lost, counted once, and the order stays."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_sources import make_tfds, png
from unclip_jax.config import DataConfig
from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.images import BadImage
from unclip_jax.data.pipeline import make_batches
from unclip_jax.data.sources import open_source

DAMAGED = 3
BATCHES = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of five records, and a copy with one bit flipped inside the picture of one."""
    whole = make_tfds(tmp_path_factory.mktemp("whole"))
    copy = Path(shutil.copytree(whole, tmp_path_factory.mktemp("flipped") / "squares"))
    flip_bit(next(copy.glob("*train*")))
    return whole, copy


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    place = data.find(png(DAMAGED))
    assert place > 0, "the records are not where this test looks for them"
    data[place + 40] ^= 4
    file.write_bytes(data)


def tokenize(texts: Sequence[str]) -> np.ndarray:
    return np.array([[int(text.split()[-1])] for text in texts], np.int32)


def stream(folder: Path, skipped: Path | None, process: int, count: int) -> np.ndarray:
    """[BATCHES, 4 / count] the number of the record in each place."""
    batches = make_batches(
        open_source(DataConfig(source=f"tfds:{folder}")),
        image_size=8,
        batch_size=4,
        tokenize=tokenize,
        seed=0,
        process_index=process,
        process_count=count,
        bad=BadRecords(skipped, 0.5, process_index=process),
    )
    taken = list(itertools.islice(batches, BATCHES))
    for batch in taken:  # the picture belongs to its caption
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["tokens"][:, 0])
    return np.stack([batch["tokens"][:, 0] for batch in taken])


def test_a_flipped_bit_costs_one_record(folders: tuple[Path, Path], tmp_path: Path) -> None:
    whole, flipped = folders
    expected = stream(whole, None, 0, 1)
    found = stream(flipped, tmp_path / "skipped.jsonl", 0, 1)
    others = expected != DAMAGED
    assert (~others).sum() >= 2  # it was drawn, more than once
    np.testing.assert_array_equal(found[others], expected[others])
    assert DAMAGED not in found
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["name"] == f"train/{DAMAGED}" and "damaged record" in entry["reason"]
    assert str(flipped) not in line


def test_two_processes_read_what_one_reads(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, flipped = folders
    one = stream(flipped, None, 0, 1)
    parts = [stream(flipped, tmp_path / "skipped.jsonl", process, 2) for process in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), one)
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == 1  # by whichever process met it first


def test_every_other_record_is_readable(folders: tuple[Path, Path]) -> None:
    source = open_source(DataConfig(source=f"tfds:{folders[1]}"))
    bad = []
    for index in range(len(source)):
        try:
            assert source[index].image == png(index)
        except BadImage:
            bad.append(index)
    assert bad == [DAMAGED]
