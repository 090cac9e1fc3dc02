"""The losses over all pairs: against float64, split over replicas, on eight devices."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.replicas_run import LOSSES, embeddings, on_eight_devices
from unclip_jax.config import MeshConfig
from unclip_jax.training.contrastive import make_contrastive_loss, sigmoid_loss, softmax_loss
from unclip_jax.training.sharding import make_mesh

Name = Literal["softmax", "sigmoid"]


def reference(name: Name, *inputs: Any) -> tuple[float, float]:
    """Loss and accuracy in float64, each written from its paper's formula."""
    image, text, scale, bias = (np.asarray(x, np.float64) for x in inputs)
    logits = scale * image @ text.T
    accuracy = np.mean(np.argmax(logits, axis=1) == np.arange(len(logits)))
    if name == "softmax":
        own = np.diag(logits)
        rows, columns = (np.log(np.sum(np.exp(logits), axis=axis)) for axis in (1, 0))
        return np.mean(rows - own + columns - own) / 2, accuracy
    pairs = np.where(np.eye(len(logits)), 1, -1) * (logits + bias)
    return np.sum(np.log1p(np.exp(-pairs))) / len(logits), accuracy


def plain(name: Name) -> tuple[float, float, list[np.ndarray]]:
    """On one device: loss, accuracy and gradients."""
    loss = make_contrastive_loss(name)
    (value, accuracy), gradients = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    )(*(jnp.asarray(x) for x in embeddings()))
    return float(value), float(accuracy), [np.asarray(g) for g in gradients]


@pytest.mark.parametrize("name", LOSSES)
def test_value_in_float64(name: Name) -> None:
    value, accuracy, _ = plain(name)
    expected, share = reference(name, *embeddings())
    assert value == pytest.approx(expected, rel=1e-6)
    assert accuracy == pytest.approx(share) and 0 < share < 1


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope_of_the_float64_loss(name: Name) -> None:
    """Central differences in one random direction of all inputs."""
    _, _, gradients = plain(name)
    rng = np.random.default_rng(7)
    inputs = [np.asarray(x, np.float64) for x in embeddings()]
    direction = [rng.standard_normal(x.shape) for x in inputs]
    step = 1e-5
    ahead, behind = (
        reference(name, *(x + sign * step * d for x, d in zip(inputs, direction, strict=True)))[0]
        for sign in (1, -1)
    )
    slope = sum(float(np.sum(g * d)) for g, d in zip(gradients, direction, strict=True))
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_means_over_replicas_are_the_batchs(name: Name) -> None:
    """Four replicas of six rows, as a mapped axis of one device."""
    image, text, scale, bias = (jnp.asarray(x) for x in embeddings())
    image, text = (x.reshape(4, 6, -1) for x in (image, text))
    loss = make_contrastive_loss(name, axes=("replica",))
    split = jax.vmap(loss, in_axes=(0, 0, None, None), axis_name="replica")
    losses, accuracies = split(image, text, scale, bias)
    value, accuracy, _ = plain(name)
    assert np.ptp(losses) > 0.01  # each has its own rows
    assert jnp.mean(losses) == pytest.approx(value, rel=1e-6)
    assert jnp.mean(accuracies) == pytest.approx(accuracy)


def test_the_single_losses_are_what_is_made() -> None:
    image, text, scale, bias = (jnp.asarray(x) for x in embeddings())
    softmax, sigmoid = (make_contrastive_loss(name)(image, text, scale, bias) for name in LOSSES)
    assert softmax == softmax_loss(image, text, scale)
    assert sigmoid == sigmoid_loss(image, text, scale, bias)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mesh_of_one_device_needs_no_gathering(name: Name) -> None:
    image, text, scale, bias = (jnp.asarray(x) for x in embeddings())
    on_mesh = make_contrastive_loss(name, mesh=make_mesh(MeshConfig()))
    plain = make_contrastive_loss(name)
    assert on_mesh(image, text, scale, bias) == plain(image, text, scale, bias)


@pytest.mark.parametrize("mesh", ["8x1", "2x4"])
@pytest.mark.parametrize("name", LOSSES)
def test_eight_devices_compute_what_one_does(name: Name, mesh: str) -> None:
    value, accuracy, gradients = plain(name)
    found = on_eight_devices()["contrastive"][name][mesh]
    assert found["value"] == pytest.approx(value, rel=1e-6)
    assert found["accuracy"] == pytest.approx(accuracy)
    for mine, theirs in zip(gradients, found["gradients"], strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_a_device_holds_the_logits_of_its_own_rows_only(name: Name) -> None:
    """No array of the compiled program, forward or backward, is [B, B]; without a mesh one is."""
    found = on_eight_devices()["contrastive"][name]
    assert found["none"]["whole"] and not found["none"]["rows"]
    for mesh in ("8x1", "2x4"):
        assert found[mesh]["rows"] and not found[mesh]["whole"]
