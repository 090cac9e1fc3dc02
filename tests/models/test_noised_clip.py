"""GLIDE's noised CLIP against the original, and the gradient that steers by a caption."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.networks import TOKENS, T, changed_rows, draw, random_params, same
from tests.models.reference_weights import Golden, Tree, Weights, stacked
from unclip_jax.errors import UserError
from unclip_jax.generation.steering import make_clip_steering
from unclip_jax.models.clip import MAX_LOGIT_SCALE, CLIPConfig, normalize
from unclip_jax.models.noised_clip import NoisedCLIP, NoisedCLIPConfig
from unclip_jax.models.transformer import TransformerConfig

TOWER = TransformerConfig(width=16, depth=2, heads=2)
CONFIG = NoisedCLIPConfig(CLIPConfig(20, 16, 4, TOWER, TOWER, vocab_size=97, context_length=12))
SMALL = NoisedCLIPConfig(CLIPConfig(12, 8, 4, TOWER, TOWER, vocab_size=20, context_length=6))
MODEL = NoisedCLIP(SMALL)


@jax.jit
def encode(params: Any, x: Any, t: Any) -> Any:
    return MODEL.apply({"params": params}, x, t, method=NoisedCLIP.encode_image)


def encode_image(params: Any, x: np.ndarray, t: np.ndarray = T) -> np.ndarray:
    """The small model's embeddings, not normalised."""
    return np.asarray(encode(params, x.astype(np.float32), t))


def clip_from_glide(weights: Weights) -> Tree:
    """GLIDE's two noised encoders → params of `NoisedCLIP`; its keys have no bias."""

    def affine(name: str) -> Tree:
        return {"kernel": weights.take(f"{name}.w").T, "bias": weights.take(f"{name}.b")}

    def norm(name: str) -> Tree:
        return {"scale": weights.take(f"{name}.ln.g"), "bias": weights.take(f"{name}.ln.b")}

    def block(name: str) -> Tree:
        q, v = affine(f"{name}.f_attn.f_q"), affine(f"{name}.f_attn.f_v")
        k = {"kernel": weights.take(f"{name}.f_attn.f_k.w").T, "bias": np.zeros_like(q["bias"])}
        return {
            "attention_norm": norm(f"{name}.f_attn"),
            "qkv": {key: np.concatenate([q[key], k[key], v[key]], axis=-1) for key in q},
            "attention_out": affine(f"{name}.f_attn.f_c"),
            "mlp_norm": norm(f"{name}.f_mlp"),
            "mlp_in": affine(f"{name}.f_mlp.f_1"),
            "mlp_out": affine(f"{name}.f_mlp.f_2"),
        }

    def tower(side: str) -> Tree:
        return {
            "transformer": {"blocks": stacked([block(f"{side}.blocks.block_{i}") for i in (0, 1)])},
            "positional_embedding": weights.take(f"{side}.blocks.input.w_pos"),
            "norm_out": norm(f"{side}.blocks.output"),
            "projection": {"kernel": weights.take(f"{side}.blocks.output.f.w").T},
        }

    patches = weights.take("image.blocks.input.patch_proj").transpose(2, 3, 1, 0)
    vision = {
        "patch_embedding": {"kernel": patches},
        "time_embedding": {"embedding": weights.take("image.blocks.input.w_t")},
        "norm_in": norm("image.blocks.input"),
    }
    words = {"token_embedding": {"embedding": weights.take("text.blocks.input.w_voc")}}
    return {
        "vision": vision | tower("image"),
        "text": words | tower("text"),
        "logit_scale": np.float32(MAX_LOGIT_SCALE),
    }


@pytest.fixture(scope="module", autouse=True)
def full_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(Path(__file__).parents[1] / "golden" / "parity_noised_clip.npz")


@pytest.fixture(scope="module")
def glide(golden: Golden) -> Tree:
    params = clip_from_glide(golden.weights)
    assert golden.weights.unread() == []
    return params


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL, draw(1, 3, 8, 8, 3), T, TOKENS)


def test_text_embedding_is_glides(golden: Golden, glide: Tree) -> None:
    """GLIDE is told the length of a caption; ours ends with its largest id, these do not."""
    tokens, last = golden.inputs["tokens"], golden.inputs["length"] - 1
    model = NoisedCLIP(CONFIG)
    out: Any = model.apply({"params": glide}, tokens, method=NoisedCLIP.encode_text)
    found = out[1][np.arange(2), last] @ glide["text"]["projection"]["kernel"]
    golden.check(normalize(found), "text")


def test_image_embedding_is_glides(golden: Golden, glide: Tree) -> None:
    def encode(t: np.ndarray) -> jax.Array:
        x = golden.picture("x")
        found: Any = NoisedCLIP(CONFIG).apply(
            {"params": glide}, x, t, method=NoisedCLIP.encode_image
        )
        return normalize(found)

    golden.check(encode(golden.inputs["t"]), "image")
    with pytest.raises(AssertionError):
        golden.check(encode(golden.inputs["t"] - 1), "image")


def test_steering_is_glides(golden: Golden, glide: Tree) -> None:
    text = jnp.asarray(golden.outputs["text"])
    cond_fn = make_clip_steering(NoisedCLIP(CONFIG), glide, 7 * text, scale=3.0)
    found = jax.jit(cond_fn)(golden.picture("x"), golden.inputs["t"])
    golden.check(found, "gradient", channels_last=True)


def test_size_is_that_of_the_released_model() -> None:
    """Ours has a bias on the keys as well, which adds the same to all logits of a softmax."""
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    init = NoisedCLIP(NoisedCLIPConfig()).init
    shapes = jax.eval_shape(init, jax.random.key(0), x, t, tokens)["params"]
    counts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes[name]))
        for name in ("vision", "text")
    }
    assert counts == {"vision": 86_443_776 + 12 * 768, "text": 71_679_488 + 12 * 512}


def test_rows_are_independent_and_see_picture_and_timestep(params: Any) -> None:
    x = draw(1, 3, 8, 8, 3)
    other, later = x.copy(), T.copy()
    other[1] += 0.1
    later[2] = 998
    before = encode_image(params, x)
    assert changed_rows(before, encode_image(params, other)) == [False, True, False]
    assert changed_rows(before, encode_image(params, x, later)) == [False, False, True]


def test_both_embeddings_have_unit_norm(params: Any) -> None:
    x = draw(1, 3, 8, 8, 3)
    out: Any = jax.jit(MODEL.apply)({"params": params}, x, T, TOKENS)
    for name in ("image", "text"):
        np.testing.assert_allclose(np.linalg.norm(out[name], axis=-1), 1, rtol=1e-6)
    assert float(out["logit_scale"]) == pytest.approx(math.exp(float(params["logit_scale"])))
    assert out["logit_bias"] == 0
    image, text = (np.asarray(x, np.float64) for x in (encode_image(params, x), out["text"]))
    cosine = np.sum(image * text, axis=1) / np.linalg.norm(image, axis=1)
    np.testing.assert_allclose(np.sum(out["image"] * out["text"], axis=1), cosine, atol=1e-6)


def test_jit_computes_the_same(params: Any) -> None:
    x = draw(1, 3, 8, 8, 3)
    with jax.disable_jit():
        plain: Any = MODEL.apply({"params": params}, x, T, method=NoisedCLIP.encode_image)
    assert same(np.asarray(encode_image(params, x)), np.asarray(plain))


def test_steering_is_the_slope_of_the_agreement(params: Any) -> None:
    """Central differences along each row's own gradient give its norm."""
    x, text = draw(1, 3, 8, 8, 3), draw(2, 3, 12)

    def agreement(x: np.ndarray) -> np.ndarray:
        image = encode_image(params, x).astype(np.float64)
        cosine = np.sum(image * text, axis=1)
        cosine /= np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
        return math.exp(float(params["logit_scale"])) * cosine

    @jax.jit
    def steer(scale: jax.Array) -> jax.Array:
        return make_clip_steering(MODEL, params, jnp.asarray(text), scale)(
            jnp.asarray(x), jnp.asarray(T)
        )

    gradient = np.asarray(steer(jnp.ones(3)), np.float64)
    norm = np.sqrt(np.sum(gradient**2, axis=(1, 2, 3)))
    step = 1e-2
    along = step * gradient / norm[:, None, None, None]
    slope = (agreement(x + along) - agreement(x - along)) / (2 * step)
    np.testing.assert_allclose(slope, norm, rtol=2e-3)

    scale = np.array([2.0, 0.0, 0.5], np.float32)
    expected = scale[:, None, None, None] * gradient
    np.testing.assert_allclose(steer(jnp.asarray(scale)), expected, rtol=1e-5, atol=1e-6)


def test_a_process_without_timesteps_is_refused() -> None:
    with pytest.raises(UserError, match="num_timesteps is 0"):
        NoisedCLIPConfig(num_timesteps=0)
