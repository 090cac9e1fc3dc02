"""Micro-batches, groups and the stream of pictures, on programs of one line."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.generation.drawing import AHEAD, Link, draw
from unclip_jax.generation.keys import fold_keys, image_keys, stage_keys
from unclip_jax.generation.rows import RowProgram, RowRunner, Rows, micro_batches, run_in_groups
from unclip_jax.samples import PictureWriter


def add(stage: str) -> RowProgram:
    return RowProgram(stage, stage, (stage,), lambda params, rows: rows["x"] + params[stage])


class Recorder(RowRunner):
    """Notes what was begun, with the weights that were on the devices then."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__(params, {})
        self.begun: list[tuple[str, tuple[str, ...]]] = []

    def start(self, program: RowProgram, rows: Rows) -> Array:
        found = super().start(program, rows)
        self.begun.append((program.name, tuple(sorted(self._placed))))
        return found


LINKS = [
    Link(add("first"), {"x": "x"}, "embedding"),
    Link(add("last"), {"x": "embedding"}, "image"),
]
PARAMS = {"first": np.float32(10), "last": np.float32(100)}


def test_the_last_micro_batch_is_filled_up() -> None:
    parts = list(micro_batches({"x": np.arange(5), "y": np.arange(10).reshape(5, 2)}, 3))
    assert [count for _, count in parts] == [3, 2]
    assert parts[1][0]["x"].tolist() == [3, 4, 3]
    assert parts[1][0]["y"].tolist() == [[6, 7], [8, 9], [6, 7]]
    assert parts[1][0]["is_real"].tolist() == [True, True, False]


def test_the_next_micro_batch_is_begun_before_one_is_taken() -> None:
    runner = Recorder(PARAMS)
    stream = draw(runner, LINKS, micro_batches({"x": np.arange(7.0, dtype=np.float32)}, 2))
    first = next(stream)
    assert first.start == 0 and first.images.tolist() == [110, 111]
    assert len(runner.begun) == len(LINKS) * (1 + AHEAD)
    rest = list(stream)
    assert [part.start for part in rest] == [2, 4, 6]
    assert np.concatenate([part.images for part in rest]).tolist() == [112, 113, 114, 115, 116]
    assert rest[-1].embeddings is not None and rest[-1].embeddings.tolist() == [16]
    assert runner.begun[-1] == ("last", ("first", "last"))


def test_one_stage_at_a_time_holds_the_weights_of_one() -> None:
    runner, told = Recorder(PARAMS), []
    rows = {"x": np.arange(5.0, dtype=np.float32)}
    parts = list(draw(runner, LINKS, micro_batches(rows, 2), "one", told.append))
    assert np.concatenate([part.images for part in parts]).tolist() == [110, 111, 112, 113, 114]
    assert runner.begun == [("first", ("first",))] * 3 + [("last", ("last",))] * 3
    assert told == ["first", "last"]


@pytest.mark.parametrize(("size", "real"), [(1, 3), (2, 5), (3, 4), (8, 2), (2, 0)])
def test_groups_of_padding_are_not_computed(size: int, real: int) -> None:
    values = np.arange(1.0, 6.0, dtype=np.float32)
    rows = {"x": jnp.asarray(values), "is_real": jnp.arange(5) < real}
    found = np.asarray(run_in_groups(lambda group: 2 * group["x"], rows, size))
    computed = min(-(-real // size) * size, 5)
    assert found[:computed].tolist() == (2 * values[:computed]).tolist()
    assert not found[computed:].any()


@pytest.mark.parametrize("count", [1, 3, 64, 130])
def test_requests_may_have_seeds_of_their_own(count: int) -> None:
    seeds = [7, 2**32 - 1, *range(128)][:count]
    found = stage_keys(seeds, range(count), 2)
    assert found.shape[:2] == (2, count) and found.dtype == np.uint32
    for row in {0, count // 2, count - 1}:
        for stage in range(2):
            key = fold_keys(image_keys(seeds[row], [row]), stage)
            np.testing.assert_array_equal(found[stage, row], jax.random.key_data(key)[0])


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Any) -> None:
    writer = PictureWriter(tmp_path / "out")
    (tmp_path / "out").rmdir()
    writer.add("0.png", np.zeros((4, 4, 3), np.uint8), {"prompt": "a", "index": 0})
    with pytest.raises(UserError, match="cannot write"):
        writer.__exit__(None, None, None)


def test_a_program_that_is_compiled_is_told_once() -> None:
    runner, told = RowRunner(PARAMS, {}), []
    runner.on_compile = lambda name, seconds: told.append((name, seconds is None))
    for _ in range(2):
        runner.run(LINKS[0].program, {"x": np.arange(5.0, dtype=np.float32)}, 2)
    assert told == [("first", True), ("first", False)]
