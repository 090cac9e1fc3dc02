"""unclip fit-linear: the closed form as a stage, against gradient descent on the same pairs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.training import toys
from unclip_jax.cli import fit_linear
from unclip_jax.cli import main as command_line
from unclip_jax.config import DataConfig
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.generation.keys import image_keys
from unclip_jax.models.linear_prior import LinearPrior, linear_loss
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.encoded_pairs import make_pair_reader, open_pairs
from unclip_jax.training.loop import train
from unclip_jax.training.objectives.conditions import Pairs
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, load_stage, save_stage, weights_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, a CLIP without training, and its linear prior."""
    folder = tmp_path_factory.mktemp("linear")
    toys.write_pictures(folder / "pictures")
    recipe = toys.clip_recipe()
    params = toys.random_like(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))
    tokenizer = train_bpe(["a red circle", "a blue bar"], 600, 12)
    save_stage(Stage(recipe, params, tokenizer, 0, weights_id(params)), folder / "clip", "float32")
    return folder


def run(folder: Path, *more: str, out: str = "linear_prior") -> int:
    data = ["--data.source", str(folder / "pictures"), "--data.image-size", "16"]
    arguments = ["fit-linear", str(folder / "clip"), "--out", str(folder / out), *data, *more]
    with pytest.raises(SystemExit) as end:
        command_line.main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Pairs:
    clip, data = load_stage(folder / "clip"), DataConfig(str(folder / "pictures"), image_size=16)
    read = make_pair_reader(clip.recipe.model, clip.params, clip.tokenizer)
    return next(read(open_pairs(data, clip.clip_id, clip.tokenizer), data))


def loss(stage: Stage, pairs: Pairs) -> float:
    assert isinstance(stage.recipe, LinearPriorRecipe)
    predicted: Any = LinearPrior(stage.recipe.model).apply({"params": stage.params}, pairs.text)
    return float(linear_loss(predicted, pairs.image)[0])


def test_the_command_writes_ridge_regression(
    folder: Path, pairs: Pairs, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float64 by the normal equations of the centred pairs; the printed cosines are right."""
    assert run(folder, "--ridge", "0.3", "--eval-split", "train") == 0
    stage = load_stage(folder / "linear_prior")
    assert isinstance(stage.recipe, LinearPriorRecipe) and stage.recipe.model.ridge == 0.3
    assert (stage.step, stage.clip_id) == (0, load_stage(folder / "clip").clip_id)
    x, y = np.asarray(pairs.text, np.float64), np.asarray(pairs.image, np.float64)
    centred, target = x - x.mean(axis=0), y - y.mean(axis=0)
    penalty = 0.3 * len(x) * x.var(axis=0).mean()
    kernel = np.linalg.solve(centred.T @ centred + penalty * np.eye(16), centred.T @ target)
    bias = y.mean(axis=0) - x.mean(axis=0) @ kernel
    np.testing.assert_allclose(stage.params["projection"]["kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(stage.params["projection"]["bias"], bias, atol=1e-5)
    predicted = x @ kernel + bias
    predicted /= np.linalg.norm(predicted, axis=1, keepdims=True)
    out = capsys.readouterr().out
    fitted, raw = (float(number) for number in re.findall(r"0?-?0\.\d{4}", out))
    assert fitted == pytest.approx(np.mean(np.sum(predicted * y, axis=1)), abs=1e-4)
    assert raw == pytest.approx(np.mean(np.sum(x * y, axis=1)), abs=1e-4)
    assert "12 pairs" in out and fitted > raw


def test_no_training_run_comes_below_the_closed_form(folder: Path, pairs: Pairs) -> None:
    assert run(folder, "--ridge", "0", "--eval-split", "None", out="least_squares") == 0
    recipe = toys.on_folder(
        "linear_prior", folder, 40, optim={"learning_rate": 0.03}, checkpoint={"every": 40}
    )
    train(recipe, folder / "run")
    trained = load_stage(folder / "run")
    start = replace(trained, params=jax.tree.map(np.zeros_like, trained.params))
    closed = loss(load_stage(folder / "least_squares"), pairs)
    assert closed <= loss(trained, pairs) + 1e-6 < loss(start, pairs)


def test_a_model_samples_from_it(folder: Path) -> None:
    assert run(folder, "--eval-split", "None", out="fitted") == 0
    model = UnCLIP.load({"clip": folder / "clip", "linear_prior": folder / "fitted"})
    texts = ["a red circle", "a blue bar"]
    drawn = model.sample_prior(texts, image_keys(0, range(2)), prior="linear")
    weights = load_stage(folder / "fitted").params["projection"]
    expected = model.encode_text(texts) @ np.asarray(weights["kernel"]) + np.asarray(
        weights["bias"]
    )
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def fail(capsys: pytest.CaptureFixture[str], folder: Path, *more: str, **changes: str) -> str:
    capsys.readouterr()
    assert run(folder, *more, **changes) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def test_mistakes_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "only 'train'" in fail(capsys, folder, out="new")  # a folder has no split 'test'
    assert "ridge is -1" in fail(capsys, folder, "--ridge", "-1", out="new")
    assert "holds other files" in fail(capsys, folder, out="pictures")
    assert "is a file" in fail(capsys, folder, out="pictures/red_bar.txt")
    assert not (folder / "new").exists()
    with pytest.raises(SystemExit):
        fit_linear.main(["--help"])
    assert "--eval-split" in capsys.readouterr().out
