"""Plans of small recipes with the TPU's compiler, where it is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.training import toys
from unclip_jax.cli.main import main
from unclip_jax.config import MeshConfig
from unclip_jax.errors import UserError
from unclip_jax.training import sharding
from unclip_jax.training.planning.chips import CHIPS, chip_of, topology_devices
from unclip_jax.training.planning.plan import Plan, make_plan, remedies
from unclip_jax.training.planning.plan_text import plan_text
from unclip_jax.training.stages import init_params

Capture = pytest.CaptureFixture[str]


def in_bfloat16(config: Any) -> Any:
    """A config whose networks compute in bfloat16."""
    changes = {
        item.name: "bfloat16" if item.name == "dtype" else in_bfloat16(getattr(config, item.name))
        for item in dataclasses.fields(config)
        if item.name == "dtype" or dataclasses.is_dataclass(getattr(config, item.name))
    }
    return dataclasses.replace(config, **changes) if changes else config


@pytest.fixture(autouse=True)
def stored_programs() -> Iterator[None]:
    """The command switches the store of compiled programs off; other tests want it."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The smallest decoder on 8 chips, all its arrays split however small they are."""
    pytest.importorskip("libtpu")
    before, sharding.SMALLEST_SHARDED = sharding.SMALLEST_SHARDED, 64
    mesh = MeshConfig(fsdp=8, topology="v5e:2x4")
    recipe = toys.recipe("decoder", mesh=mesh, model=toys.SMALL_DECODER)
    recipe = dataclasses.replace(recipe, model=in_bfloat16(recipe.model))
    found = make_plan(recipe, toys.recipe("clip"))
    sharding.SMALLEST_SHARDED = before
    return found


def test_weights_are_gathered_in_bfloat16(plan: Plan) -> None:
    """And no optimiser state is gathered: the largest array that is gathered is a weight."""
    gathered = [row for row in plan.program.collectives if row.kind == "all-gather"]
    assert gathered
    wide = [row for row in gathered if row.dtype == "f32"]
    # The tables of tokens are looked up in float32; nothing else comes near them.
    assert sum(row.received for row in wide) < sum(row.received for row in gathered)
    kinds = {row.kind for row in plan.program.collectives}
    assert not kinds & {"collective-permute", "all-to-all"}


def test_the_state_is_split(plan: Plan) -> None:
    memory = plan.memory
    assert memory.parameters < 1.4 * 4 * plan.count / 8
    assert memory.average == memory.parameters
    assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=0.01)
    assert memory.total < memory.capacity


def test_the_compiled_work_is_the_models(plan: Plan) -> None:
    """With nothing computed again, the compiler's products are those that were counted."""
    assert plan.program.flops * 8 == pytest.approx(plan.flops, rel=0.35)
    assert 0 < plan.mfu_ceiling <= 1
    assert plan.step_floor == max(plan.compute_floor, plan.network_floor)
    exact = dataclasses.replace(plan, is_quick=False)
    assert exact.step_floor == max(plan.step_floor, plan.memory_floor)
    text = plan_text(plan)
    assert "it fits" in text and "all-gather bf16 among 8" in text


def test_remedies_ask_for_less_and_less() -> None:
    pytest.importorskip("libtpu")
    mesh = MeshConfig(topology="v5e:2x4")
    recipe = toys.recipe("decoder", mesh=mesh, batch_size=32)
    said = [change for change, _ in remedies(recipe)]
    assert said == [
        "--mesh.fsdp 8",
        "remat='block' in every network of the recipe",
        "--optim.accumulate 2",
        "--optim.accumulate 4",
        "--optim.mu-dtype bfloat16",
    ]
    *_, (_, last) = remedies(recipe)
    assert last.model.unet.remat == "block" and last.optim.accumulate == 4


def test_a_recipe_that_is_too_big_is_told_what_helps(capsys: Capture) -> None:
    """A state of 18 GB: too much for one chip, and enough room on eight."""
    pytest.importorskip("libtpu")
    words = [str(toys.CONFIGS / "clip.py"), "--topology", "v5e:2x4", "--batch-size", "8"]
    with pytest.raises(SystemExit) as end:
        main(["plan", *words, "--set", "model.vocab_size=9000000", "--set", "model.text.width=128"])
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "does not fit: a chip would need" in said and "has 15.8 GiB" in said
    assert said.splitlines()[-1] == "fits with: --mesh.fsdp 8"


def test_chips() -> None:
    assert chip_of("v5p:4x4x8") is CHIPS["v5p"]
    for name in ("v5e", "v9:2x2", "v5e:2", "v5e:2x2x2x2", "h100:8"):
        with pytest.raises(UserError, match=r"topology .* is unknown"):
            chip_of(name)


@pytest.mark.parametrize(("topology", "count"), [("v5e:16x16", 256), ("v6e:4x4", 16)])
def test_topologies(topology: str, count: int) -> None:
    pytest.importorskip("libtpu")
    assert len(topology_devices(topology)) == count
    devices = topology_devices(topology, 2)
    assert len(devices) == 2 * count
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, slices=2), devices)
    number = [{device.slice_index for device in row} for row in mesh.devices]
    assert all(len(row) == 1 for row in number)  # fsdp stays in a slice
    assert number[0] != number[-1]


def test_refusals(capsys: Capture, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["plan", *words])
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    clip = str(toys.CONFIGS / "clip.py")
    assert "--topology" in refused(clip)
    assert "give 1 or more" in refused(clip, "--slices", "0")
    assert "--set" in refused(clip, "--set", "batch_size")
    assert "the recipe comes first" in refused("--topology", "v5e:2x4")
    lonely = tmp_path / "decoder.py"
    lonely.write_text((toys.CONFIGS / "decoder.py").read_text())
    pytest.importorskip("libtpu")
    assert "--clip-recipe" in refused(str(lonely), "--topology", "v5e:2x4")
    assert "does not fit 8 devices" in refused(
        clip, "--topology", "v5e:2x4", "--set", "mesh.fsdp=3"
    )


def test_only_weights_are_gathered_and_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """No moment, average or float32 weight is ever whole on a chip: no float32 array that is
    gathered is as large as the smallest that is split."""
    pytest.importorskip("libtpu")
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 9000)
    recipe = toys.recipe("classifier", mesh=MeshConfig(fsdp=4, topology="v5e:2x4"))
    encoder = dataclasses.replace(recipe.model.encoder, channels=32, has_middle_attention=False)
    recipe = in_bfloat16(toys.changed(recipe, model={"encoder": encoder}))
    params = jax.eval_shape(lambda key: init_params(recipe, key), jax.random.key(0))
    split = [leaf.size for leaf in jax.tree.leaves(params) if leaf.size >= 9000]
    rows = make_plan(recipe, None).program.collectives
    wide = [row.largest for row in rows if row.kind == "all-gather" and row.dtype == "f32"]
    assert max(wide, default=0) < 4 * min(split)
    gathers = [row.largest for row in rows if row.kind == "all-gather" and row.dtype == "bf16"]
    assert gathers == [2 * max(split)]
    # And the gradient of the largest is scattered, not summed whole on every chip.
    received = [row for row in rows if row.dtype == "bf16" and row.kind != "all-gather"]
    assert {row.kind for row in received if row.largest == 2 * max(split)} == {"reduce-scatter"}
