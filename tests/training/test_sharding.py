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
from tests.training.sharded_run import DALLE2, MESHES, STEPS, meshes_of
from unclip_jax.config import MeshConfig
from unclip_jax.errors import UserError
from unclip_jax.training.loop import train
from unclip_jax.training.recipe import STAGES
from unclip_jax.training.sharding import _shard_largest, infer_shardings, make_mesh

OTHERS = [(stage, mesh) for stage in STAGES for mesh in meshes_of(stage) if mesh != "1x1"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Any]:
    """What `sharded_run` prints: 20 steps of every stage on every mesh."""
    folder = tmp_path_factory.mktemp("meshes")
    toys.write_pictures(folder / "pictures")
    train(toys.on_folder("clip", folder, 1), folder / "clip")
    command = [sys.executable, "-m", "tests.training.sharded_run", str(folder)]
    # Nearly all of the time is compilation. Without these two it is three times as long.
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
    }
    process = subprocess.run(
        command, cwd=repository, env=env, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize(("stage", "mesh"), OTHERS)
def test_every_model_trains_as_on_one_device(stage: str, mesh: str, found: dict[str, Any]) -> None:
    """CLIP's global contrast, convolutions with split kernels, the priors: every metric."""
    one, eight = found["rows"][stage]["1x1"], found["rows"][stage][mesh]
    assert len(one) == len(eight) == STEPS
    assert one[0]["loss"] != one[-1]["loss"]
    for name in one[0]:
        mine, theirs = ([row[name] for row in rows] for rows in (one, eight))
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("source", MESHES)
def test_a_checkpoint_of_any_mesh_continues_on_any_other(
    source: str, found: dict[str, Any]
) -> None:
    """Of CLIP; what is restored is a tree of arrays, of whatever model."""
    restored = found["restored"][source]
    for target in MESHES:
        assert restored[target]["same"], target
        for name, value in restored[source].items():
            np.testing.assert_allclose(value, restored[target][name], rtol=1e-5, err_msg=target)


def test_weights_are_initialised_in_place(found: dict[str, Any]) -> None:
    assert found["init"] == {"4x2": True, "zero1": True}


def test_what_a_mesh_splits(found: dict[str, Any]) -> None:
    """ZeRO-1 splits all but the parameters; a mesh without fsdp nothing."""
    parts = found["parts"]
    assert parts["8x1"]["split"] == []
    assert parts["1x8"]["split"] == ["ema_params", "opt_state", "params"]
    assert parts["zero1"]["split"] == ["ema_params", "opt_state"]
    assert "params" in parts["zero1"]["whole"]


@pytest.mark.parametrize("recipe", sorted(path.stem for path in DALLE2.glob("*.py")))
def test_the_papers_models_are_split(recipe: str, found: dict[str, Any]) -> None:
    """Every leaf has a place, and nothing above 4 MiB lies whole on every device."""
    paper = found["paper"][recipe]
    assert paper["every_leaf"] and paper["average_as_weights"]
    assert paper["largest_whole"] <= 4 * 2**20
    assert paper["share_split"] > 0.99


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
