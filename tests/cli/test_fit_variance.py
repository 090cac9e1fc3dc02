"""unclip fit-variance and what follows from it: a run, its norms, the export, its samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training import toys
from unclip_jax.cli import main as command_line
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.generation.keys import image_keys
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.loop import train
from unclip_jax.training.score_norms import FILE
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, load_stage, save_stage, weights_id

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, two CLIPs without training, a run of two steps for the first."""
    folder = tmp_path_factory.mktemp("variance")
    toys.write_pictures(folder / "pictures")
    recipe = toys.clip_recipe()
    tokenizer = train_bpe(["a red circle", "a blue bar"], 600, 12)
    for scale, name in ((0.3, "clip"), (0.2, "other")):
        shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
        params = toys.random_like(shapes, scale)
        stage = Stage(recipe, params, tokenizer, 0, weights_id(params))
        save_stage(stage, folder / name, "float32")
    train(prior_recipe(folder, 2), folder / "prior")
    return folder


def prior_recipe(folder: Path, steps: int):
    return toys.on_folder("prior", folder, steps, diffusion={"num_timesteps": STEPS})


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        command_line.main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def fit(folder: Path, *more: str, prior: str = "prior") -> int:
    data = ["--data.source", str(folder / "pictures"), "--data.split", "train"]
    return run("fit-variance", folder / prior, *data, "--data.image-size", "16", *more)


def norms(folder: Path) -> np.ndarray:
    return load_file(folder / "prior" / FILE)["score_norms"]


def test_the_estimate_does_not_depend_on_the_batch_size(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(folder, "--batch-size", "5") == 0
    assert "10 of 12 pictures" in capsys.readouterr().out
    first = norms(folder)
    assert first.shape == (STEPS,) and first.dtype == np.float32 and (first <= 1).all()
    assert fit(folder, "--clip", str(folder / "clip")) == 0
    np.testing.assert_allclose(norms(folder), first, rtol=1e-5, atol=1e-6)
    assert fit(folder, "--rows", "4") == 0
    assert np.abs(norms(folder) / first - 1).max() > 1e-3  # of fewer pictures
    np.testing.assert_array_equal(load_stage(folder / "prior").score_norms, norms(folder))


def test_an_exported_model_samples_with_its_variances(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(folder) == 0
    model = tmp_path / "model"
    parts = ("--clip", folder / "clip", "--prior", folder / "prior", "--prior-steps", "4")
    assert run("export", *parts, "--out", model) == 0
    assert json.loads((model / "sampling.json").read_text())["prior"]["variance"] == "analytic"
    np.testing.assert_array_equal(load_file(model / "prior" / FILE)["score_norms"], norms(folder))
    loaded = UnCLIP.load(model)
    texts, keys = ["a red circle", "a blue bar"] * 8, image_keys(0, range(16))
    analytic = loaded.sample_prior(texts, keys)
    assert np.isfinite(analytic).all()
    np.testing.assert_allclose(np.linalg.norm(analytic, axis=1), 1, rtol=1e-5)
    how = loaded.sampling
    trained = replace(how, prior=replace(how.prior, variance="trained"))
    assert np.abs(loaded.sample_prior(texts, keys, trained) - analytic).max() > 1e-4
    # An exported folder can be measured too; it names its CLIP by the model's name alone.
    capsys.readouterr()
    assert fit(model, "--clip", str(model / "clip")) == 2  # no pictures in there
    assert "no such folder" in capsys.readouterr().err
    # Another stage that is exported into the folder leaves the prior's default as it is.
    linear = ("--linear-prior", tmp_path / "linear")
    data = ("--data.source", folder / "pictures", "--data.image-size", "16")
    fitted = run("fit-linear", folder / "clip", "--out", linear[1], *data, "--eval-split", "None")
    assert fitted == 0 and run("export", *linear, "--out", model) == 0
    assert json.loads((model / "sampling.json").read_text())["prior"]["variance"] == "analytic"
    drawn = UnCLIP.load(model).sample_prior(texts[:2], keys[:2], prior="linear")
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-5)


def test_norms_of_other_steps_do_not_count(folder: Path, tmp_path: Path) -> None:
    """A run that went on: its norms are forgotten, not used and not in the way."""
    train(prior_recipe(folder, 2), tmp_path / "prior")
    assert fit(folder, prior=str(tmp_path / "prior")) == 0
    assert load_stage(tmp_path / "prior").score_norms is not None
    train(prior_recipe(folder, 4), tmp_path / "prior")
    assert load_stage(tmp_path / "prior").score_norms is None
    parts = ("--clip", folder / "clip", "--prior", tmp_path / "prior")
    assert run("export", *parts, "--out", tmp_path / "model") == 0
    sampling = json.loads((tmp_path / "model" / "sampling.json").read_text())
    assert sampling["prior"]["variance"] == "trained"
    assert fit(folder, prior=str(tmp_path / "prior")) == 0
    assert load_stage(tmp_path / "prior").score_norms is not None


def test_mistakes_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*more: str, prior: str = "prior") -> str:
        capsys.readouterr()
        assert fit(folder, *more, prior=prior) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        return line

    assert "not a diffusion prior" in fail(prior="clip")
    assert "was trained for CLIP" in fail("--clip", str(folder / "other"))
    assert "is not a CLIP" in fail("--clip", str(folder / "prior"))
    assert "--rows is 0" in fail("--rows", "0")
    assert "--batch-size is 0" in fail("--batch-size", "0")
    config = folder / "prior" / "config.json"
    text = config.read_text()
    config.write_text(text.replace(str(folder / "clip"), "gone"))
    assert "--clip" in fail()
    config.write_text(text)
