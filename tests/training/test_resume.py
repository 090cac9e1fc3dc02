"""train() on a folder of pictures: an interrupted run equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training import toys
from unclip_jax.cli.preview import make_preview
from unclip_jax.config import CheckpointConfig
from unclip_jax.errors import UserError
from unclip_jax.training.checkpoint import Checkpoints, newest_step, with_shardings
from unclip_jax.training.loop import train
from unclip_jax.training.optim import make_optimizer
from unclip_jax.training.stages import init_params
from unclip_jax.training.state import init_state
from unclip_jax.training.step_log import SPEEDS

STAGES = (
    "clip",
    "prior",
    "ar_prior",
    "linear_prior",
    "one_step_prior",
    "decoder",
    "upsampler",
    "noised_clip",
    "classifier",
)
SPEED = set(SPEEDS)  # the only numbers that may differ


class Runs:
    """The toy stages, trained on one folder of pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pictures = folder, toys.write_pictures(folder / "pictures")

    def recipe(self, stage: str, steps: int, **changes: Any) -> Any:
        if stage == "decoder":
            changes["model"] = toys.SMALL_DECODER | changes.get("model", {})
        return toys.on_folder(stage, self.folder, steps, **changes)

    def train(self, stage: str, steps: int, name: str | None = None, **changes: Any) -> Any:
        return train(self.recipe(stage, steps, **changes), self.folder / (name or stage))

    def state(self, stage: str, name: str, step: int) -> Any:
        """Of the newest checkpoint, which is to be that of `step`."""
        recipe = self.recipe(stage, step)
        optimizer = make_optimizer(recipe.optim, step)
        shapes = jax.eval_shape(
            lambda: init_state(init_params(recipe, jax.random.key(0)), optimizer)
        )
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        checkpoints = Checkpoints(self.folder / name, CheckpointConfig(), shapes)
        state = checkpoints.restore_newest(
            with_shardings(shapes, jax.tree.map(lambda _: here, shapes))
        )
        checkpoints.close()
        assert state is not None and int(state.step) == step
        return state

    def rows(self, name: str) -> list[dict[str, float]]:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k not in SPEED} for x in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every stage trained for 4 steps straight; the CLIP of the others first."""
    runs = Runs(tmp_path_factory.mktemp("runs"))
    for stage in STAGES:
        assert runs.train(stage, 4) == (4, None)
    return runs


def test_an_upsampler_draws_previews(runs: Runs) -> None:
    """Four rows of the data's pictures: small, bicubic, drawn, true."""
    log = {"every": 1, "preview_every": 2, "preview_columns": 3, "preview_steps": 2}
    recipe = runs.recipe("upsampler", 2, log=log)
    preview = make_preview(recipe)
    assert preview is not None
    train(recipe, runs.folder / "seen", preview)
    sheet = np.asarray(Image.open(runs.folder / "seen" / "samples" / "step_0000002.png"))
    assert sheet.shape == (4 * 34 + 2, 3 * 34 + 2, 3)
    small, bicubic, drawn, truth = (
        sheet[2 + 34 * row : 34 * (row + 1), 2:34].astype(int) for row in range(4)
    )
    means = truth.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).repeat(4, axis=0).repeat(4, axis=1)
    assert np.abs(small - means).max() <= 1
    assert np.abs(bicubic - truth).mean() < np.abs(drawn - truth).mean()  # two steps teach nothing
    assert make_preview(runs.recipe("upsampler", 2)) is None
    assert make_preview(runs.recipe("prior", 2, log=log)) is None


def test_a_decoder_of_captions_alone_trains_and_resumes(runs: Runs) -> None:
    glide = {"embedding_width": None}
    assert runs.train("decoder", 4, "glide", model=glide) == (4, None)
    assert runs.train("decoder", 2, "glide_again", model=glide) == (2, None)
    assert runs.train("decoder", 4, "glide_again", model=glide) == (4, None)
    assert runs.rows("glide") == runs.rows("glide_again")
    with pytest.raises(UserError, match=r"model.embedding_width None reads none"):
        runs.train("decoder", 4, "other", model=glide, data={"embeddings": "store"})


@pytest.mark.parametrize("stage", STAGES)
def test_two_steps_and_two_more_equal_four(stage: str, runs: Runs) -> None:
    parts = f"{stage}_parts"
    assert runs.train(stage, 2, parts) == (2, None)
    assert runs.train(stage, 4, parts) == (4, None)
    straight, resumed = runs.state(stage, stage, 4), runs.state(stage, parts, 4)
    assert int(straight.step) == 4
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert runs.rows(stage) == runs.rows(parts)
    assert [row["step"] for row in runs.rows(stage)] == [1, 2, 3, 4]


def test_training_moves_weights_and_average(runs: Runs) -> None:
    runs.train("decoder", 2, "decoder_young")
    before, after = runs.state("decoder", "decoder_young", 2), runs.state("decoder", "decoder", 4)
    for old, new in ((before.params, after.params), (before.ema_params, after.ema_params)):
        moved = [
            bool(np.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (old, new)), strict=True)
        ]
        assert np.mean(moved) > 0.9


def test_another_seed_is_another_run(runs: Runs) -> None:
    runs.train("prior", 2, "prior_seed", seed=1)
    assert runs.rows("prior_seed")[0]["loss"] != runs.rows("prior")[0]["loss"]


def test_a_finished_run_is_left_alone(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs.folder / "prior"
    files = {p: p.stat().st_mtime_ns for p in (folder / "checkpoints").rglob("*") if p.is_file()}
    rows = runs.rows("prior")
    assert runs.train("prior", 4) == (4, None)
    assert "has all its 4 steps" in capsys.readouterr().out
    assert files == {p: p.stat().st_mtime_ns for p in files} and rows == runs.rows("prior")


def test_another_recipe_is_refused(runs: Runs) -> None:
    with pytest.raises(UserError, match=r"optim\.learning_rate 0\.001.*0\.5"):
        runs.train("prior", 6, optim={"learning_rate": 0.5})
    with pytest.raises(UserError, match="stage 'prior'"):
        runs.train("clip", 6, "prior")
    with pytest.raises(UserError, match="batch_size"):
        runs.train("prior", 6, batch_size=4)
    assert newest_step(runs.folder / "prior") == 4
    assert len(runs.rows("prior")) == 4


def test_another_clip_is_refused(runs: Runs) -> None:
    runs.train("clip", 2, "other_clip", seed=5)
    with pytest.raises(UserError, match="CLIP"):
        runs.train("prior", 6, clip=str(runs.folder / "other_clip"))
    assert json.loads((runs.folder / "prior" / "config.json").read_text())["clip"]


def test_only_the_newest_checkpoints_stay(runs: Runs) -> None:
    runs.train("clip", 4, "clip_keep", checkpoint={"every": 1, "keep": 2})
    steps = sorted(int(p.name) for p in (runs.folder / "clip_keep" / "checkpoints").iterdir())
    assert steps == [3, 4]


def test_rows_after_the_checkpoint_are_written_again(runs: Runs) -> None:
    """A run that was killed between two checkpoints has metrics that the next one makes anew."""
    runs.train("prior", 2, "prior_killed")
    path = runs.folder / "prior_killed" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "loss": 1e9}\n\xff\x00\n{"step": 4, "lo')
    runs.train("prior", 4, "prior_killed")
    assert runs.rows("prior_killed") == runs.rows("prior")


def test_a_checkpoint_that_is_not_complete_does_not_count(runs: Runs) -> None:
    runs.train("prior", 2, "prior_torn")
    torn = runs.folder / "prior_torn" / "checkpoints" / "4.orbax-checkpoint-tmp"
    torn.mkdir()
    assert newest_step(runs.folder / "prior_torn") == 2
    assert runs.train("prior", 4, "prior_torn") == (4, None)
    jax.tree.map(
        np.testing.assert_array_equal,
        runs.state("prior", "prior", 4),
        runs.state("prior", "prior_torn", 4),
    )


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("prior", {"model": {"embedding_width": 24}}, "model.embedding_width is 24"),
        ("prior", {"model": {"text_width": 24}}, "model.text_width is 24"),
        ("prior", {"model": {"context_length": 9}}, "model.context_length is 9"),
        ("decoder", {"model": {"embedding_width": 24}}, "model.embedding_width is 24"),
        ("decoder", {"clip": "PRIOR"}, "is not a CLIP"),
        ("decoder", {"clip": "nowhere"}, "neither a run nor an exported"),
        ("clip", {"batch_size": 6, "mesh": {"data": 3}}, "does not fit"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    stage: str, changes: dict, words: str, runs: Runs
) -> None:
    if changes.get("clip") == "PRIOR":
        changes = {"clip": str(runs.folder / "prior")}
    recipe = runs.recipe(stage, 2)
    recipe = toys.changed(recipe, **changes)
    with pytest.raises(UserError, match=words) as found:
        train(recipe, runs.folder / "refused")
    assert "\n" not in str(found.value)


def test_sigterm_saves_and_the_same_command_continues(runs: Runs, repository: Path) -> None:
    """The only test of this file that needs a process of its own: it is killed."""
    workdir = runs.folder / "clip_killed"
    command = [sys.executable, "train.py", "configs/toy/clip.py", "--workdir", str(workdir)]
    command += ["--data.source", str(runs.pictures), "--steps", "1000000", "--log.every", "1"]
    command += ["--checkpoint.every", "1000000"]
    process = subprocess.Popen(
        command, cwd=repository, env=os.environ, stderr=subprocess.PIPE, text=True
    )
    try:
        metrics = workdir / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    step = newest_step(workdir)
    assert step is not None and step > 3 and f"step {step}: saved" in errors

    settings = {"log": {"every": 1}, "checkpoint": {"every": 10}}
    recipe = toys.recipe("clip", steps=step + 1, data={"source": str(runs.pictures)}, **settings)
    assert train(recipe, workdir) == (step + 1, None)
    assert [row["step"] for row in runs.rows("clip_killed")] == list(range(1, step + 2))


@pytest.mark.parametrize("stage", ["clip", "noised_clip"])
def test_sharpness_aware_steps(stage: str, runs: Runs) -> None:
    """The same recipe with SAM: another gradient, and the loss before the perturbation is told."""
    name = f"{stage}_sam"
    assert runs.train(stage, 2, name, optim={"sam_rho": 0.1}) == (2, None)
    first, plain = runs.rows(name)[0], runs.rows(stage)[0]
    assert first["loss"] != plain["loss"]
    if stage == "clip":  # the noised one draws its noise with another key a device
        assert first["unperturbed_loss"] == pytest.approx(plain["loss"], rel=1e-5)
