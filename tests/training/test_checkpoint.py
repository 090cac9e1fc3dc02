"""Checkpoints: what counts as good, what stays, what is refused; and formats that were released."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.config import CheckpointConfig
from unclip_jax.errors import UserError
from unclip_jax.training import checkpoint as module
from unclip_jax.training.checkpoint import Checkpoints, load_ema_params, newest_step
from unclip_jax.training.comparing import Comparing
from unclip_jax.training.manifest import find_damage, read_manifest, write_manifest
from unclip_jax.training.retention import steps_to_keep
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import load_stage

GOLDEN = Path(__file__).parents[1] / "golden"
TABLE_SUMS = {1: 66.79026794433594, 2: 154.56759643554688}
"""Format → of the absolute values of the token table in its golden run."""
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(value: float) -> dict[str, Any]:
    return {
        "params": {"kernel": jnp.full((64, 3), float(value)), "bias": jnp.zeros(3)},
        "ema_params": {"kernel": jnp.full((64, 3), value / 2), "bias": jnp.ones(3)},
        "step": jnp.int32(value),
    }


def shapes(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=HERE), tree
    )


def write(folder: Path, losses: dict[int, float | None], **config: Any) -> None:
    """Checkpoints of these steps."""
    checkpoints = Checkpoints(folder, CheckpointConfig(**config), shapes(state(0)))
    for step, loss in losses.items():
        checkpoints.save(step, state(step), {"stage": "toy"}, loss)
    checkpoints.close()


def open_again(folder: Path, like: Any = None) -> Any:
    abstract = shapes(state(0) if like is None else like)
    checkpoints = Checkpoints(folder, CheckpointConfig(), abstract)
    try:
        return checkpoints.restore_newest(abstract)
    finally:
        checkpoints.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """With checkpoints 1, 2 and 3."""
    write(tmp_path, {1: 0.5, 2: 0.4, 3: 0.3}, keep=3)
    return tmp_path


def test_what_is_saved_comes_back(run: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, open_again(run), state(3))
    assert newest_step(run) == 3
    content = json.loads((run / "checkpoints" / "3" / "manifest.json").read_text())
    assert content["recipe"] == {"stage": "toy"} and content["loss"] == 0.3
    listed = {*content["files"], "manifest.json"}
    folder = run / "checkpoints" / "3"
    assert listed == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_nothing_saved_is_no_state(tmp_path: Path) -> None:
    assert open_again(tmp_path) is None and newest_step(tmp_path) is None


def test_every_file_is_compared(run: Path) -> None:
    """A bit of each, one after another: none is out of the manifest's sight."""
    folder = run / "checkpoints" / "3"
    manifest = read_manifest(folder)
    assert not isinstance(manifest, str) and find_damage(folder, manifest) is None
    for name, (size, _) in manifest.files.items():
        if not size:
            continue
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert (find_damage(folder, manifest) or "").startswith(f"{name} has changed")
        shares = [find_damage(folder, manifest, part, 3) for part in range(3)]
        assert sum(found is not None for found in shares) == 1
        (folder / name).write_bytes(data)


def test_a_damaged_one_is_put_aside_for_the_one_before(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "3" / "manifest.json").unlink()
    assert newest_step(run) == 2
    assert int(open_again(run)["step"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "manifest.json is missing" in said[0] and "checkpoints/3" in said[0]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["1", "2", "3.damaged"]
    write(run, {3: None})  # its place is free
    assert int(open_again(run)["step"]) == 3


def test_a_comparison_begun_before_counts_once(run: Path) -> None:
    """It finds what was damaged before it; what is damaged later is found by the next one."""
    folder = run / "checkpoints" / "3"
    file = max(folder.glob("state/**/d/*"), key=lambda path: path.stat().st_size)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    comparing = Comparing(run)
    early = comparing.take(folder)
    assert early is not None and "has changed" in (early.result() or "")
    assert comparing.take(folder) is None and Comparing(run).take(folder.with_name("2")) is None
    comparing = Comparing(run)
    abstract = shapes(state(0))
    checkpoints = Checkpoints(run, CheckpointConfig(), abstract, comparing=comparing)
    assert int(checkpoints.restore_newest(abstract)["step"]) == 2
    checkpoints.close()
    (run / "checkpoints" / "2" / "manifest.json").unlink()
    assert Comparing(run).take(folder.with_name("2")) is None


def test_none_good_is_an_error_that_stays(run: Path) -> None:
    for step in "123":
        (run / "checkpoints" / step / "_CHECKPOINT_METADATA").write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError, match="no undamaged checkpoint"):
            open_again(run)
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        load_ema_params(run, shapes(state(0)["ema_params"]))


def test_sampling_takes_the_average_of_the_newest_good_one(run: Path) -> None:
    kernel = next(
        path
        for path in (run / "checkpoints" / "3").rglob("*")
        if path.is_file() and path.parent.name == "d"
    )
    kernel.write_bytes(kernel.read_bytes()[::-1])
    step, average = load_ema_params(run, shapes(state(0)["ema_params"]))
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, average, state(2)["ema_params"])
    assert (run / "checkpoints" / "3").exists()  # somebody else's run


def test_other_shapes_name_the_first_leaves(run: Path) -> None:
    other = state(0)
    other["params"] = {"kernel": jnp.zeros((64, 4)), "weight": jnp.zeros(3)}
    with pytest.raises(UserError) as found:
        open_again(run, other)
    for words in (
        "in 3 arrays",
        "params/kernel is float32[64,3] there and float32[64,4] here",
        "params/bias is float32[3] there and unknown here",
        "params/weight is missing there and float32[3] here",
    ):
        assert words in str(found.value)
    assert newest_step(run) == 3


def test_a_later_format_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "3" / "manifest.json"
    content = json.loads(path.read_text())
    sealed = json.dumps(content | {"sha256": "0" * 64, "format": 99})
    own = hashlib.sha256(sealed.encode()).hexdigest()
    path.write_text(sealed.replace("0" * 64, own, 1))
    with pytest.raises(UserError, match=r"has format 99.*update the package"):
        open_again(run)


def test_no_bit_of_a_manifest_flips_unseen(run: Path) -> None:
    """Neither is a damaged one believed, nor does it end a run that has a good one before it."""
    path = run / "checkpoints" / "3" / "manifest.json"
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).permutation(8 * len(whole))[:2000]:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        assert isinstance(read_manifest(path.parent), str), bit
    assert int(open_again(run)["step"]) == 2


@pytest.mark.parametrize(
    "change", [{"loss": "abc"}, {"loss": [1]}, {"files": {}}, {"files": {"a": ["Infinity", "b"]}}]
)
def test_a_manifest_of_the_wrong_kinds_is_damage(run: Path, change: dict[str, Any]) -> None:
    path = run / "checkpoints" / "2" / "manifest.json"
    content = json.loads(path.read_text()) | {"format": 1} | change
    del content["sha256"]
    path.write_text(json.dumps(content).replace('"Infinity"', "Infinity"))
    assert "cannot be read" in str(read_manifest(path.parent))
    write(run, {4: 0.1}, keep=2)
    assert newest_step(run) == 4


def test_what_is_no_checkpoint_is_no_checkpoint(run: Path) -> None:
    folder = run / "checkpoints"
    for name in ("035", "٣٥", "-1", "1e3"):
        (folder / name).mkdir()
    assert newest_step(run) == 3 and int(open_again(run)["step"]) == 3
    (folder / "5").write_text("a file")
    (folder / "6").symlink_to(folder / "nowhere")
    (folder / "6.damaged").symlink_to(folder / "1")
    assert int(open_again(run)["step"]) == 3
    assert (folder / "5.damaged").is_file() and (folder / "6.damaged").is_symlink()
    assert (folder / "1").is_dir()


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"keep": 2}, {50, 60}),
        ({"keep": 1, "keep_every": 20}, {20, 40, 60}),
        ({"keep": 1, "keep_best": 2}, {60, 30, 50}),
        ({"keep": 9}, {10, 20, 30, 40, 50, 60}),
    ],
)
def test_what_stays(config: dict[str, int], kept: set[int]) -> None:
    losses = {10: 9.0, 20: 3.0, 30: 1.0, 40: None, 50: 2.0, 60: float("nan")}
    assert steps_to_keep(losses, CheckpointConfig(**config)) == kept


def test_the_best_stays_on_disk(tmp_path: Path) -> None:
    write(tmp_path, {1: 0.5, 2: 0.1, 3: 0.3, 4: 0.4}, keep=1, keep_best=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


def test_what_a_killed_process_left_is_removed(run: Path) -> None:
    for name in ("4.saving", "4.saving.orbax-checkpoint-tmp", "2.deleting"):
        shutil.copytree(run / "checkpoints" / "1", run / "checkpoints" / name)
    open_again(run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_a_process_killed_in_its_first_save_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment is there something that looks like a checkpoint and has no manifest."""
    seen: list[str] = []

    def killed(folder: Path, *arguments: Any) -> None:
        seen.extend(path.name for path in folder.parent.iterdir())
        shutil.copytree(folder.parent, tmp_path / "killed" / "checkpoints")
        write_manifest(folder, *arguments)

    monkeypatch.setattr(module, "write_manifest", killed)
    write(tmp_path / "run", {1: 0.5})
    assert seen == ["1.saving"]
    assert newest_step(tmp_path / "killed") is None
    assert open_again(tmp_path / "killed") is None
    assert newest_step(tmp_path / "run") == 1


@pytest.mark.parametrize("policy", ["stop", "go_on"])
def test_a_disk_that_is_too_small(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 2 * (64 * 3 + 3) * 4 + 4
    config = CheckpointConfig(keep=2, keep_best=1, on_disk_full=policy)
    usage = SimpleNamespace(free=4 * size - 1)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    if policy == "stop":
        with pytest.raises(UserError, match=r"lower checkpoint\.keep"):
            Checkpoints(tmp_path, config, shapes(state(0)))
    else:
        Checkpoints(tmp_path, config, shapes(state(0))).close()
        assert "lower checkpoint.keep" in capsys.readouterr().err
    usage.free += 1
    Checkpoints(tmp_path, config, shapes(state(0))).close()
    assert capsys.readouterr().err == ""


def test_checkpoints_that_are_there_need_no_room(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that continues has most of what it keeps on the disk."""
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    Checkpoints(run, CheckpointConfig(keep=1), shapes(state(0))).close()


@pytest.mark.parametrize("number", [1, 2])
def test_a_released_format_opens(number: int, tmp_path: Path) -> None:
    """Written by the version that introduced the format; never written again."""
    shutil.copytree(GOLDEN / f"run_format_{number}", tmp_path / "run")
    stage = load_stage(tmp_path / "run")
    assert stage.step == 3 and stage.tokenizer is not None
    shape = jax.eval_shape(lambda: init_params(stage.recipe, jax.random.key(0)))
    assert jax.tree.structure(shape) == jax.tree.structure(stage.params)
    table = stage.params["text"]["token_embedding"]["embedding"]
    np.testing.assert_allclose(float(jnp.abs(table).sum()), TABLE_SUMS[number], rtol=1e-6)
    manifest = read_manifest(tmp_path / "run" / "checkpoints" / "3")
    assert not isinstance(manifest, str)
    assert {name.split("/")[0] for name in manifest.leaves} == {
        *("step", "params", "ema_params", "opt_state", "guard")
    }
