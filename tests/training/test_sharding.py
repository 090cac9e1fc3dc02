"""Eight devices compute what one computes, whatever the mesh; large arrays are split over it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.training import toys
from unclip_jax.config import MeshConfig
from unclip_jax.errors import UserError
from unclip_jax.training.loop import train
from unclip_jax.training.sharding import _shard_largest, infer_shardings, make_mesh
from unclip_jax.training.step_log import SPEEDS

STAGES = ("clip", "decoder")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Any]:
    """Metrics of 3 steps of every stage: on one device here, on 8 in a process of its own."""
    folder = tmp_path_factory.mktemp("meshes")
    toys.write_pictures(folder / "pictures")
    found: dict[str, Any] = {}
    for stage in STAGES:
        model = toys.SMALL_DECODER if stage == "decoder" else {}
        train(toys.on_folder(stage, folder, 3, model=model), folder / stage)
        lines = (folder / stage / "metrics.jsonl").read_text().splitlines()
        found[stage] = [json.loads(line) for line in lines]
    train(toys.on_folder("clip", folder, 2), folder / "clip_continued")
    command = [sys.executable, "-m", "tests.training.sharded_run", str(folder)]
    # Most of the time is compilation; unoptimised code computes the same.
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    process = subprocess.run(
        command, cwd=repository, env=env, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stderr
    return {"one": found, "eight": json.loads(process.stdout.splitlines()[-1])}


def assert_close(one: list[dict[str, float]], eight: list[dict[str, float]]) -> None:
    assert [row["step"] for row in one] == [row["step"] for row in eight] == [1, 2, 3]
    for mine, theirs in zip(one, eight, strict=True):
        for name in set(mine) - set(SPEEDS):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("mesh", ["8x1", "1x8"])
def test_clips_global_contrast_is_that_of_one_device(mesh: str, runs: dict[str, Any]) -> None:
    assert_close(runs["one"]["clip"], runs["eight"]["clip"][mesh])


def test_parameters_may_stay_whole(runs: dict[str, Any]) -> None:
    """ZeRO-1: the same numbers, with only averages and optimiser state split."""
    assert_close(runs["one"]["clip"], runs["eight"]["zero1"])
    assert "params" in runs["eight"]["paper"]["whole_under_zero1"]
    assert runs["eight"]["paper"]["split_under_zero1"] == ["ema_params", "opt_state"]


def test_decoder_equals_one_device(runs: dict[str, Any]) -> None:
    """Convolutions with split kernels, on (2, 4)."""
    assert_close(runs["one"]["decoder"], runs["eight"]["decoder"])


def test_a_run_continues_on_another_mesh(runs: dict[str, Any]) -> None:
    """Two steps on one device, the third on (2, 4)."""
    assert_close(runs["one"]["clip"], runs["eight"]["continued"])


def test_the_papers_decoder_is_split(runs: dict[str, Any]) -> None:
    """Every leaf has a place, and nothing above 4 MiB lies whole on every device."""
    found = runs["eight"]["paper"]
    assert found["every_leaf"] and found["average_as_weights"]
    assert found["largest_whole"] * 4 <= 4 * 2**20
    assert found["share_split"] > 0.99


@pytest.mark.parametrize(
    ("shape", "parts", "expected"),
    [
        ((512, 2048), 8, PartitionSpec(None, "fsdp")),
        ((24, 2048, 512), 8, PartitionSpec(None, "fsdp", None)),
        ((3, 3, 512, 256), 4, PartitionSpec(None, None, "fsdp", None)),
        ((50257, 512), 8, PartitionSpec(None, "fsdp")),  # the largest dimension that divides
        ((257, 1027), 8, PartitionSpec()),
        ((512, 64), 8, PartitionSpec()),  # small
        ((512, 2048), 1, PartitionSpec()),
    ],
)
def test_the_largest_dimension_that_divides(
    shape: tuple[int, ...], parts: int, expected: PartitionSpec
) -> None:
    assert _shard_largest(shape, parts) == expected


def test_counters_are_whole() -> None:
    tree = {"step": jax.ShapeDtypeStruct((), "int32"), "opt_state": ({"count": np.zeros(())},)}
    placed = infer_shardings(tree, make_mesh(MeshConfig()))
    assert {s.spec for s in jax.tree.leaves(placed)} == {PartitionSpec()}


@pytest.mark.parametrize(("data", "fsdp"), [(2, 1), (1, 2), (-1, 2), (3, 5)])
def test_a_mesh_of_other_devices_is_refused(data: int, fsdp: int) -> None:
    assert jax.device_count() == 1
    with pytest.raises(UserError, match=f"fsdp={fsdp}.* does not fit 1 device"):
        make_mesh(MeshConfig(data=data, fsdp=fsdp))


@pytest.mark.parametrize(("data", "fsdp"), [(0, 1), (-2, 1), (1, 0)])
def test_a_mesh_without_devices_is_refused(data: int, fsdp: int) -> None:
    with pytest.raises(UserError, match="give 1 or more"):
        MeshConfig(data=data, fsdp=fsdp)
    with pytest.raises(UserError, match=r"mesh\.slices is 2"):
        MeshConfig(data=3, slices=2)
