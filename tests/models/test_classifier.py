"""ADM's noisy classifier against the original, and the gradient that steers by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.networks import Network, changed_rows, draw, same
from tests.models.reference_weights import (
    ADM_BLOCK,
    Golden,
    Tree,
    Weights,
    _res_block,
    _unet_blocks,
)
from unclip_jax.errors import UserError
from unclip_jax.generation.steering import make_classifier_steering
from unclip_jax.models.classifier import Classifier, ClassifierConfig
from unclip_jax.models.unet import UNetConfig

CONFIG = ClassifierConfig(
    num_classes=10,
    encoder=UNetConfig(
        image_size=16,
        channels=8,
        channel_mult=(1, 2, 3),
        depth=(1,),
        attention_resolutions=(8, 4),
        head_channels=8,
        groups=4,
    ),
)
SMALL = ClassifierConfig(
    num_classes=5,
    encoder=replace(CONFIG.encoder, image_size=8, channel_mult=(1, 2), attention_resolutions=(4,)),
)


def classifier_from_adm(weights: Weights, c: UNetConfig) -> Tree:
    """ADM's EncoderUNetModel → params of `Classifier`. The pool packs [Q | K | V], as we do."""
    tree = {
        "time_in": weights.dense("time_embed.0"),
        "time_out": weights.dense("time_embed.2"),
        "conv_in": weights.conv("input_blocks.0.0"),
        "norm_out": weights.norm("out.0"),
        "pool": {
            "positional_embedding": weights.take("out.2.positional_embedding").T,
            "qkv": weights.dense("out.2.qkv_proj"),
            "projection": weights.dense("out.2.c_proj"),
        },
    }
    for here, kind, name, _, width in _unet_blocks(c):
        if here.startswith("up"):
            continue
        if kind == "block":
            tree[here] = _res_block(weights, name, ADM_BLOCK, "skip_connection")
        else:
            tree[here] = {
                "norm": weights.norm(f"{name}.norm"),
                "qkv": weights.per_head(f"{name}.qkv", c.num_heads(width), 3),
                "projection": weights.dense(f"{name}.proj_out"),
            }
    return tree


@pytest.fixture(scope="module", autouse=True)
def full_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def adm() -> tuple[Golden, Tree, Callable]:
    golden = Golden(Path(__file__).parents[1] / "golden" / "parity_classifier.npz")
    params = classifier_from_adm(golden.weights, CONFIG.encoder)
    assert golden.weights.unread() == []
    return golden, params, jax.jit(Classifier(CONFIG).apply)


@pytest.fixture(scope="module")
def network() -> Network:
    inputs = {"x": draw(1, 3, 8, 8, 3), "t": np.array([3, 500, 999], np.int32)}
    return Network(Classifier(SMALL), inputs)


def test_logits_are_adms(adm: tuple[Golden, Tree, Callable]) -> None:
    golden, params, apply = adm
    x, t = golden.picture("x"), golden.inputs["t"]
    golden.check(apply({"params": params}, x, t), "logits")
    with pytest.raises(AssertionError):
        golden.check(apply({"params": params}, x, t - 1), "logits")


def test_steering_is_adms(adm: tuple[Golden, Tree, Callable]) -> None:
    golden, params, _ = adm
    i = golden.inputs
    cond_fn = make_classifier_steering(Classifier(CONFIG), params, jnp.asarray(i["label"]))
    golden.check(jax.jit(cond_fn)(golden.picture("x"), i["t"]), "gradient", channels_last=True)


@pytest.mark.parametrize(
    ("image_size", "channel_mult", "depth", "millions"),
    [
        (64, (1, 2, 3, 4), 4, 65),
        (128, (1, 1, 2, 3, 4), 2, 43),
        (256, (1, 1, 2, 2, 4, 4), 2, 54),
    ],
)
def test_published_sizes(
    image_size: int, channel_mult: tuple[int, ...], depth: int, millions: int
) -> None:
    """Dhariwal & Nichol 2021, table 12."""
    encoder = UNetConfig(
        image_size=image_size, channels=128, channel_mult=channel_mult, depth=(depth,)
    )
    x = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(
        Classifier(ClassifierConfig(1000, encoder)).init, jax.random.key(0), x, t
    )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert round(count / 1e6) == millions


def test_rows_are_independent_and_see_picture_and_timestep(network: Network) -> None:
    x, t = network.inputs["x"].copy(), network.inputs["t"].copy()
    x[1] += 0.1
    assert changed_rows(network(), network(x=x)) == [False, True, False]
    t[2] = 200
    assert changed_rows(network(), network(t=t)) == [False, False, True]


def test_jit_computes_the_same(network: Network) -> None:
    with jax.disable_jit():
        assert same(network(network.module.apply), network())


def test_steering_is_the_slope_of_the_log_probability(network: Network) -> None:
    """Central differences along each row's own gradient give its norm."""
    x, t = network.inputs["x"], network.inputs["t"]
    labels = np.array([0, 4, 2])

    def log_probability(x: np.ndarray) -> np.ndarray:
        logits = network(x=x.astype(np.float32)).astype(np.float64)
        own = logits[np.arange(3), labels]
        return own - np.log(np.sum(np.exp(logits), axis=1))

    @jax.jit
    def steer(scale: jax.Array) -> jax.Array:
        module: Classifier = network.module  # type: ignore[assignment]
        cond_fn = make_classifier_steering(module, network.params, jnp.asarray(labels), scale)
        return cond_fn(jnp.asarray(x), jnp.asarray(t))

    gradient = np.asarray(steer(jnp.ones(3)), np.float64)
    norm = np.sqrt(np.sum(gradient**2, axis=(1, 2, 3)))
    step = 1e-2
    along = step * gradient / norm[:, None, None, None]
    slope = (log_probability(x + along) - log_probability(x - along)) / (2 * step)
    np.testing.assert_allclose(slope, norm, rtol=2e-3)

    scale = np.array([0.5, 0.0, 10.0], np.float32)
    expected = scale[:, None, None, None] * gradient
    np.testing.assert_allclose(steer(jnp.asarray(scale)), expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="num_classes is 1"):
        ClassifierConfig(num_classes=1)
    with pytest.raises(UserError, match="context_width is 8"):
        ClassifierConfig(encoder=UNetConfig(context_width=8))
