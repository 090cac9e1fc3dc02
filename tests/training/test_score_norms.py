"""Gamma of a diffusion prior: its formula in float64, and the file beside the weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.training import toys
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.errors import UserError
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.training.objectives.conditions import Pairs
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.score_norms import (
    FILE,
    load_score_norms,
    measure_score_norms,
    save_score_norms,
)
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, load_stage, save_stage

STEPS = 6
NORMS = np.linspace(0.2, 0.99, STEPS, dtype=np.float32)


@pytest.fixture(scope="module")
def recipe() -> PriorRecipe:
    return toys.changed(toys.prior_recipe(), diffusion={"num_timesteps": STEPS})


@pytest.fixture(scope="module")
def params(recipe: PriorRecipe) -> Any:
    return toys.random_like(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))


def draw_pairs(rows: int) -> Pairs:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, rows, 16)).astype("f4")
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    states = rng.standard_normal((rows, 12, 16)).astype("f4")
    mask = np.arange(12) < rng.integers(2, 12, (rows, 1))
    return Pairs(*(jnp.asarray(x) for x in (image, text, states, mask)))


def cut(pairs: Pairs, size: int) -> list[Pairs]:
    parts = (pairs.image, pairs.text, pairs.states, pairs.mask)
    starts = range(0, len(pairs.image), size)
    return [Pairs(*(part[i : i + size] for part in parts)) for i in starts]


def test_gamma_is_one_less_the_error_of_the_predicted_noise(
    recipe: PriorRecipe, params: Any
) -> None:
    """In float64 from the definition of the cosine schedule, row by row, network calls aside."""
    pairs = draw_pairs(4)
    u = np.arange(STEPS + 1) / STEPS
    level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    level = np.cumprod(np.maximum(level[1:] / level[:-1], 1e-3))
    x0 = np.asarray(pairs.image, np.float64) * 17.2 / 32 * 4  # width 16
    network = jax.jit(DiffusionPrior(recipe.model).apply)
    expected = np.zeros(STEPS)
    for t in range(STEPS):
        keys = [jax.random.fold_in(jax.random.key(3), row) for row in range(4)]
        noise = [jax.random.normal(jax.random.fold_in(key, t), (16,)) for key in keys]
        xt = np.sqrt(level[t]) * x0 + np.sqrt(1 - level[t]) * np.asarray(noise, np.float64)
        given = (xt.astype("f4"), np.full(4, t), pairs.text, pairs.states, pairs.mask)
        predicted = np.asarray(network({"params": params}, *given), np.float64)
        eps = (xt - np.sqrt(level[t]) * predicted) / np.sqrt(1 - level[t])
        expected[t] = 1 - np.mean((np.asarray(noise, np.float64) - eps) ** 2)
    found = measure_score_norms(recipe, params, [pairs], seed=3)
    assert found.shape == (STEPS,) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_batches_of_any_size_give_the_same(recipe: PriorRecipe, params: Any) -> None:
    pairs, done = draw_pairs(8), []
    whole = measure_score_norms(recipe, params, [pairs])
    parts = measure_score_norms(recipe, params, cut(pairs, 3), on_rows=done.append)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    assert done == [3, 6, 8]
    other = measure_score_norms(recipe, params, [pairs], seed=1)
    assert np.abs(other / whole - 1).max() > 1e-3  # the noise is drawn


def test_file(tmp_path: Path) -> None:
    save_score_norms(NORMS, tmp_path / FILE, 7)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert load_file(tmp_path / FILE)["score_norms"].dtype == np.float32
    np.testing.assert_array_equal(load_score_norms(tmp_path / FILE, STEPS, 7), NORMS)
    assert load_score_norms(tmp_path / FILE, STEPS, 8) is None  # of other weights
    assert load_score_norms(tmp_path / "nothing", STEPS, 7) is None
    save_file({"score_norms": NORMS}, tmp_path / FILE)  # without a step it is not checked
    np.testing.assert_array_equal(load_score_norms(tmp_path / FILE, STEPS, 8), NORMS)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "too few": (lambda p: save_score_norms(NORMS[1:], p, 7), r"shape \(5,\), the prior 6"),
    "a matrix": (lambda p: save_score_norms(NORMS[None], p, 7), r"shape \(1, 6\)"),
    "not a number": (lambda p: save_score_norms(NORMS * np.nan, p, 7), "not finite"),
    "another name": (lambda p: save_file({"gamma": NORMS}, p), "cannot be read"),
    "half a file": (truncate, "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, recipe: PriorRecipe, params: Any, tmp_path: Path) -> None:
    stage = Stage(recipe, params, train_bpe(["a"], 530, 12), 7, "0" * 16, score_norms=NORMS)
    save_stage(stage, tmp_path)
    change, words = DAMAGE[name]
    change(tmp_path / FILE)
    with pytest.raises(UserError) as found:
        load_stage(tmp_path)
    line = str(found.value)
    assert str(tmp_path / FILE) in line and "unclip fit-variance" in line and "\n" not in line
    assert re.search(words, line)


def test_stages_carry_their_norms(recipe: PriorRecipe, params: Any, tmp_path: Path) -> None:
    stage = Stage(recipe, params, train_bpe(["a"], 530, 12), 7, "0" * 16, score_norms=NORMS)
    save_stage(stage, tmp_path)
    np.testing.assert_array_equal(load_stage(tmp_path).score_norms, NORMS)
    # Another prior in the same folder does not inherit them.
    save_stage(replace(stage, score_norms=None), tmp_path)
    assert load_stage(tmp_path).score_norms is None
    assert not (tmp_path / FILE).exists()
