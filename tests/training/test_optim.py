"""One step: decay, warm-up, clipping, the bound on the temperature, accumulation, the average."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from tests.training import toys
from unclip_jax.config import OptimConfig
from unclip_jax.training.optim import decay_mask, make_learning_rate, make_optimizer
from unclip_jax.training.stages import init_params
from unclip_jax.training.state import init_state, update_ema
from unclip_jax.training.step import make_train_step
from unclip_jax.training.weights import flatten


def shapes_of(stage: str) -> Any:
    return jax.eval_shape(lambda: init_params(toys.recipe(stage), jax.random.key(0)))


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder"])
def test_decay_leaves_gains_and_biases_alone(stage: str) -> None:
    """Also under `nn.scan`, where a bias has two dimensions."""
    mask = flatten(decay_mask(shapes_of(stage)))
    decayed = {name.split("/")[-1] for name, applies in mask.items() if applies}
    spared = {name.split("/")[-1] for name, applies in mask.items() if not applies}
    assert (
        {"kernel"}
        <= decayed
        <= {
            "kernel",
            "embedding",
            "positional_embedding",
            "padding_embedding",
        }
    )
    assert {"bias", "scale"} <= spared and not spared & decayed
    stacked = [name for name in mask if "/blocks/" in name and name.endswith("bias")]
    assert stacked and not any(mask[name] for name in stacked)


def test_decay_moves_the_kernels_by_learning_rate_times_decay() -> None:
    params = toys.random_like(shapes_of("prior"))
    optimizer = make_optimizer(OptimConfig(learning_rate=0.1, weight_decay=0.5), steps=10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for name, change in flatten(updates).items():
        weight = flatten(params)[name]
        is_decayed = flatten(decay_mask(params))[name]
        np.testing.assert_allclose(change, -0.05 * weight * is_decayed, rtol=1e-5, atol=1e-8)


def test_warm_up_and_cosine() -> None:
    config = OptimConfig(learning_rate=1.0, schedule="cosine", warmup_steps=10)
    rate = make_learning_rate(config, steps=110)
    values = np.array([float(rate(step)) for step in range(111)])
    assert 0 < values[0] < 0.11
    assert (np.diff(values[:11]) > 0).all() and values[10] == pytest.approx(1)
    expected = [0.5 * (1 + math.cos(math.pi * i / 100)) for i in range(101)]
    np.testing.assert_allclose(values[10:], expected, atol=1e-6)
    constant = make_learning_rate(OptimConfig(learning_rate=0.3), steps=5)
    assert [float(constant(step)) for step in (0, 4, 9)] == pytest.approx([0.3] * 3)
    short = make_learning_rate(config, steps=5)  # a run that ends before its warm-up
    assert np.isfinite([float(short(step)) for step in range(20)]).all()


def test_clipping_is_by_the_global_norm() -> None:
    params = {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.zeros(1)}}
    gradient = {"a": {"kernel": jnp.array([3.0, 0.0])}, "b": {"kernel": jnp.array([4.0])}}
    for clip, factor in ((2.5, 0.5), (None, 1.0), (10.0, 1.0)):
        optimizer = make_optimizer(OptimConfig(clip_norm=clip), steps=1)
        _, state = optimizer.update(gradient, optimizer.init(params), params)
        (moments,) = [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
        np.testing.assert_allclose(moments.mu["a"]["kernel"], [0.3 * factor, 0], rtol=1e-5)
        np.testing.assert_allclose(moments.mu["b"]["kernel"], [0.4 * factor], rtol=1e-5)


def is_adam(state: Any) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


@pytest.mark.parametrize(("slope", "comes_back"), [(-1.0, False), (1.0, True)])
def test_temperature_is_bounded_and_not_stuck(slope: float, comes_back: bool) -> None:
    """Clipped at 100; a gradient that wants it smaller is still followed."""
    params = {"logit_scale": jnp.asarray(math.log(99.9)), "kernel": jnp.zeros(1)}
    optimizer = make_optimizer(OptimConfig(learning_rate=0.01), steps=50)
    state = optimizer.init(params)
    for _ in range(20):
        gradient = {"logit_scale": jnp.asarray(slope), "kernel": jnp.ones(1)}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        assert float(jnp.exp(params["logit_scale"])) <= 100.001
    assert (float(jnp.exp(params["logit_scale"])) < 90) == comes_back
    assert params["kernel"][0] == pytest.approx(-0.2, rel=1e-3)


def test_muon_makes_the_update_of_each_kernel_orthogonal() -> None:
    """A convolution is one tall matrix, stacked layers are matrices of their own; the rest is Adam.

    Five Newton-Schulz steps bring singular values to about 0.7 to 1.2, whatever they were.
    """
    shapes = {"dense": (12, 20), "convolution": (3, 3, 4, 8), "layers": (2, 6, 10)}
    keys = jax.random.split(jax.random.key(3), len(shapes))
    gradient: Any = {
        name: {"kernel": jax.random.normal(key, shape)}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    gradient["dense"]["bias"] = jnp.array([3.0, -0.01])
    gradient["table"] = {"embedding": jnp.array([[-2.0, 5.0]])}
    config = OptimConfig(optimizer="muon", learning_rate=0.1, clip_norm=None)
    optimizer = make_optimizer(config, steps=10)
    params = jax.tree.map(jnp.zeros_like, gradient)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    for name, shape in shapes.items():
        layers = -np.asarray(updates[name]["kernel"], np.float64).reshape(-1, *shape[-2:])
        if len(shape) == 4:
            layers = layers.reshape(1, -1, shape[-1])
        assert len(layers) == (2 if name == "layers" else 1)
        for layer in layers:
            rms = 0.1 * 0.2 * math.sqrt(max(layer.shape))
            values = np.linalg.svd(layer, compute_uv=False) / rms
            assert (values > 0.5).all() and (values < 1.3).all()
    np.testing.assert_allclose(updates["dense"]["bias"], [-0.1, 0.1], rtol=1e-4)
    np.testing.assert_allclose(updates["table"]["embedding"], [[0.1, -0.1]], rtol=1e-4)


def test_muon_decays_what_adamw_decays() -> None:
    params = toys.random_like(shapes_of("prior"))
    config = OptimConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, steps=10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    decayed = flatten(decay_mask(params))
    for name, change in flatten(updates).items():
        expected = -0.05 * flatten(params)[name] * decayed[name]
        np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-8)


def test_the_first_moment_can_be_bfloat16() -> None:
    params = {"kernel": jnp.ones(3)}
    optimizer = make_optimizer(OptimConfig(mu_dtype="bfloat16"), steps=1)
    _, state = optimizer.update(params, optimizer.init(params), params)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
    assert dtypes == {"int32", "bfloat16", "float32"}


# -- the step


def mean_square(params: Any, frozen: Any, batch: Any, key: Array) -> tuple[Array, dict[str, Array]]:
    error = batch["x"] @ params["kernel"] - frozen
    return jnp.mean(error**2), {"error": jnp.mean(error)}


def noise_only(params: Any, frozen: Any, batch: Any, key: Array) -> tuple[Array, dict[str, Array]]:
    return params["kernel"] @ jax.random.normal(key, (3,)), {}


def run(objective: Any, steps: int = 1, accumulate: int = 1) -> tuple[Any, Any]:
    optimizer = optax.sgd(0.1)
    state = init_state({"kernel": jnp.array([1.0, -2.0, 0.5])}, optimizer)
    gradient = jax.value_and_grad(objective, has_aux=True)
    step = jax.jit(make_train_step(gradient, optimizer, ema_decay=0.5, accumulate=accumulate))
    batch = {"x": jax.random.normal(jax.random.key(0), (8, 3))}
    metrics = None
    for _ in range(steps):
        state, metrics = step(state, jnp.asarray(0.3), batch, jax.random.key(7))
    return state, metrics


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_equals_the_whole_batch(parts: int) -> None:
    whole, split = run(mean_square, 3), run(mean_square, 3, parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, split)


def test_every_micro_batch_and_step_has_its_own_noise() -> None:
    start, root = np.array([1.0, -2.0, 0.5]), jax.random.key(7)
    first = jax.random.fold_in(root, 0)
    state, _ = run(noise_only, 1)
    expected = start - 0.1 * np.asarray(jax.random.normal(first, (3,)))
    np.testing.assert_allclose(state.params["kernel"], expected, rtol=1e-5)
    draws = [jax.random.normal(jax.random.fold_in(first, i), (3,)) for i in range(2)]
    state, _ = run(noise_only, 1, 2)
    expected = start - 0.1 * np.mean(draws, axis=0)
    np.testing.assert_allclose(state.params["kernel"], expected, rtol=1e-5)
    two, _ = run(noise_only, 2)
    second = np.asarray(jax.random.normal(jax.random.fold_in(root, 1), (3,)))
    moved = start - 0.1 * (np.asarray(jax.random.normal(first, (3,))) + second)
    np.testing.assert_allclose(two.params["kernel"], moved, rtol=1e-5)


def test_step_counts_and_reports_the_gradient() -> None:
    state, metrics = run(mean_square, 3)
    assert int(state.step) == 3 and state.step.dtype == jnp.int32
    counted = {"skipped_steps", "skipped_in_a_row"}
    assert set(metrics) == {"loss", "error", "gradient_norm"} | counted
    state, metrics = run(noise_only)
    draw = jax.random.normal(jax.random.fold_in(jax.random.key(7), 0), (3,))
    assert metrics["gradient_norm"] == pytest.approx(float(jnp.linalg.norm(draw)), rel=1e-5)


def test_average_follows_its_formula() -> None:
    start, new = {"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}
    for step, decay, d in ((0, 0.999, 0.1), (8, 0.999, 0.5), (89, 0.9, 0.9), (10**6, 0.999, 0.999)):
        found = update_ema(start, new, decay, jnp.asarray(step))["w"][0]
        assert found == pytest.approx(d * 1 + (1 - d) * 3, rel=1e-5)
    state, _ = run(mean_square, 1)
    expected = 0.1 * np.array([1.0, -2.0, 0.5]) + 0.9 * np.asarray(state.params["kernel"])
    np.testing.assert_allclose(state.ema_params["kernel"], expected, rtol=1e-5)
