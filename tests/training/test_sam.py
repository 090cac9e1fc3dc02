"""Sharpness-aware minimisation against closed forms in float64, with one replica and with many."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.replicas_run import (
    RHO,
    logistic_objective,
    logistic_problem,
    on_eight_devices,
)
from unclip_jax.config import MeshConfig
from unclip_jax.errors import UserError
from unclip_jax.training.sam import make_sam_gradient, perturb
from unclip_jax.training.sharding import make_mesh

KEY = jax.random.key(0)
Arrays = dict[str, Any]


def logistic_gradient(params: Arrays, batch: Arrays) -> tuple[float, Arrays]:
    """Loss and gradient of the mean logistic loss, float64."""
    sign = 2 * batch["y"] - 1
    margin = sign * (batch["x"] @ params["w"] + params["b"])
    slope = -sign / (1 + np.exp(margin)) / len(sign)
    return float(np.mean(np.log1p(np.exp(-margin)))), {
        "w": batch["x"].T @ slope,
        "b": np.sum(slope, keepdims=True),
    }


def sharp_gradient(params: Arrays, batch: Arrays) -> tuple[float, float, Arrays]:
    """Foret et al., algorithm 1: loss at the weights, and loss and gradient at w + rho g / |g|."""
    start, g = logistic_gradient(params, batch)
    norm = np.sqrt(np.sum(g["w"] ** 2) + np.sum(g["b"] ** 2))
    moved = {name: params[name] + RHO * g[name] / norm for name in params}
    return start, *logistic_gradient(moved, batch)


def in_float64() -> tuple[Arrays, Arrays]:
    return jax.tree.map(lambda x: x.astype(np.float64), logistic_problem())


def test_one_replica_on_a_logistic_problem() -> None:
    params, batch = logistic_problem()
    gradient = jax.jit(make_sam_gradient(logistic_objective, RHO))
    (loss, metrics), grads = gradient(params, {}, batch, KEY)
    start, expected_loss, expected = sharp_gradient(*in_float64())
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert metrics["unperturbed_loss"] == pytest.approx(start, rel=1e-6)
    assert expected_loss > 1.02 * start
    for name in expected:
        np.testing.assert_allclose(grads[name], expected[name], rtol=1e-5)


def test_one_replica_on_a_quadratic() -> None:
    """L = w A w / 2: the gradient at w + rho A w / |A w| is A w + rho A A w / |A w|."""
    rng = np.random.default_rng(2)
    root, w = rng.standard_normal((4, 4)), rng.standard_normal(4)
    a = root @ root.T

    def objective(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        both = jnp.concatenate([params["left"], params["right"]])
        return both @ jnp.asarray(a, jnp.float32) @ both / 2, {}

    params = {"left": jnp.asarray(w[:1], jnp.float32), "right": jnp.asarray(w[1:], jnp.float32)}
    (_, _), grads = make_sam_gradient(objective, 0.7)(params, {}, {}, KEY)
    slope = a @ w
    expected = slope + 0.7 * a @ slope / np.linalg.norm(slope)
    found = np.concatenate([grads["left"], grads["right"]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_radius_zero_is_the_plain_gradient() -> None:
    params, batch = logistic_problem()
    (loss, metrics), grads = make_sam_gradient(logistic_objective, 0.0)(params, {}, batch, KEY)
    plain = jax.value_and_grad(logistic_objective, has_aux=True)(params, {}, batch, KEY)
    assert loss == plain[0][0] == metrics["unperturbed_loss"]
    assert metrics["margin"] == plain[0][1]["margin"]
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), grads, plain[1]))


def test_the_ascent_may_be_another_objective() -> None:
    def objective(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        return jnp.sum(params**2) / 2, {}

    def ascent(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        return jnp.sum(params * jnp.array([3.0, 4.0])), {}

    gradient = make_sam_gradient(objective, 0.5, ascent=ascent)
    (_, metrics), grads = gradient(jnp.array([1.0, 1.0]), {}, {}, KEY)
    np.testing.assert_allclose(grads, [1 + 0.5 * 3 / 5, 1 + 0.5 * 4 / 5], rtol=1e-6)
    assert metrics["unperturbed_loss"] == 7


def test_a_flat_place_is_left_where_it_is() -> None:
    params = {"w": jnp.ones(3), "b": jnp.zeros(())}
    moved = perturb(params, jax.tree.map(jnp.zeros_like, params), 0.1)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), moved, params))


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(UserError, match=r"sam_rho is -0\.1"):
        make_sam_gradient(logistic_objective, -0.1)


def test_a_mesh_of_one_device_is_one_replica() -> None:
    params, batch = logistic_problem()
    on_mesh = jax.jit(make_sam_gradient(logistic_objective, RHO, mesh=make_mesh(MeshConfig())))
    found = on_mesh(params, {}, batch, KEY)
    expected = make_sam_gradient(logistic_objective, RHO)(params, {}, batch, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("replicas", ["two_devices", "two_groups"])
def test_two_replicas_perturb_each_by_its_own_rows(replicas: str) -> None:
    """Two devices, and two groups of four devices that share a replica's rows."""
    params, batch = in_float64()
    halves = [{name: x[part] for name, x in batch.items()} for part in (np.s_[:4], np.s_[4:])]
    parts = [sharp_gradient(params, half) for half in halves]
    found = on_eight_devices()["sam"][replicas]
    assert found["unperturbed_loss"] == pytest.approx(np.mean([p[0] for p in parts]), rel=1e-6)
    assert found["loss"] == pytest.approx(np.mean([p[1] for p in parts]), rel=1e-6)
    _, _, together = sharp_gradient(params, batch)
    for name in params:
        expected = (parts[0][2][name] + parts[1][2][name]) / 2
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
        assert not np.allclose(expected, together[name], rtol=1e-2)


def test_replicas_of_clip_share_one_loss_over_all_pairs() -> None:
    """And each is perturbed by the loss of its own pairs; see `replicas_run.sam_clip`."""
    found = on_eight_devices()["sam_clip"]
    for name in ("loss", "unperturbed_loss"):
        split, expected = found[name]
        assert split == pytest.approx(expected, rel=1e-5)
    assert found["difference"] < 1e-5
    assert found["difference_without_sam"] > 0.05


def test_each_replica_draws_its_own_noise() -> None:
    drawn = [jax.random.normal(key) for key in jax.random.split(jax.random.key(5), 2)]
    assert on_eight_devices()["drawn"] == pytest.approx(float(sum(drawn)) / 2, rel=1e-6)
