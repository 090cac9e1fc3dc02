"""What must hold for any weights: what a condition may change and what it may not.

Every network gets random weights everywhere: at its initialisation a U-Net returns zero, and every
statement below would hold of zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import Array

from tests.models.networks import (
    CLIP_CONFIG,
    DECODER,
    MASK,
    PRIOR,
    SMALL_UNET,
    TOKENS,
    VISION,
    Network,
    T,
    changed_rows,
    draw,
    random_params,
    same,
)
from unclip_jax.models.clip import CLIP, normalize
from unclip_jax.models.decoder import Decoder, DecoderConfig
from unclip_jax.models.layers import timestep_embedding
from unclip_jax.models.prior import DiffusionPrior, PriorConfig
from unclip_jax.models.transformer import Transformer, causal_mask
from unclip_jax.models.unet import UNet


@pytest.fixture(scope="module")
def decoder() -> Network:
    inputs = {
        "x": draw(1, 3, 8, 8, 3),
        "t": T,
        "embedding": np.asarray(normalize(jnp.asarray(draw(2, 3, 12)))),
        "has_embedding": np.ones(3, bool),
        "tokens": TOKENS,
        "text_mask": MASK,
    }
    return Network(Decoder(DECODER), inputs)


@pytest.fixture(scope="module")
def prior() -> Network:
    inputs = {
        "noisy": draw(3, 3, 12),
        "t": T,
        "text_embedding": draw(4, 3, 12),
        "text_states": draw(5, 3, 6, 10),
        "text_mask": MASK,
    }
    return Network(DiffusionPrior(PRIOR), inputs)


# -- text masks and timesteps


def test_text_mask_ends_with_the_end_of_text() -> None:
    assert MASK.sum(axis=1).tolist() == [3, 6, 2]
    assert MASK[:, 0].all()


def test_timestep_embedding_is_cosines_then_sines() -> None:
    t, width = np.array([0, 7, 999]), 8
    frequency = 10_000.0 ** (-np.arange(4) / 4)
    angle = t[:, None] * frequency
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(timestep_embedding(jnp.asarray(t), width), expected, atol=1e-4)


# -- decoder


def test_a_dropped_embedding_has_no_influence(decoder: Network) -> None:
    has = np.array([True, False, True])
    other = -decoder.inputs["embedding"]
    before, after = decoder(has_embedding=has), decoder(has_embedding=has, embedding=other)
    assert changed_rows(before, after) == [True, False, True]
    assert changed_rows(decoder(), before) == [False, True, False]


def test_a_zero_embedding_is_the_learned_one_at_zero(decoder: Network) -> None:
    """And the network computes the same with and without jit."""
    has = np.array([True, False, True])
    params = dict(decoder.params)
    params["null_embedding"] = np.zeros_like(params["null_embedding"])
    inputs = (decoder.inputs | {"has_embedding": has}).values()
    expected = decoder.jitted({"params": params}, *inputs)
    del params["null_embedding"]
    zero = Decoder(replace(DECODER, null_embedding="zero"))
    with jax.disable_jit():
        found = zero.apply({"params": params}, *inputs)
    assert same(np.asarray(expected), np.asarray(found))
    assert changed_rows(decoder(has_embedding=has), np.asarray(found)) == [False, True, False]


def test_caption_reaches_the_picture_and_its_padding_does_not(decoder: Network) -> None:
    word = TOKENS.copy()
    word[:, 1] = [6, 6, 19]
    assert changed_rows(decoder(), decoder(tokens=word)) == [True, True, False]
    padding = np.where(MASK, TOKENS, 11)
    assert same(decoder(), decoder(tokens=padding))


def test_masked_context_has_no_influence() -> None:
    unet = Network(
        UNet(SMALL_UNET),
        {
            "x": draw(1, 3, 4, 4, 3),
            "t": T,
            "time_condition": draw(6, 3, 32),
            "context": draw(7, 3, 6, 8),
            "context_mask": MASK,
        },
    )
    context = unet.inputs["context"]
    hidden = np.where(MASK[..., None], context, context + 5)
    assert same(unet(), unet(context=hidden))
    shown = np.where(MASK[..., None], context + 5, context)
    assert changed_rows(unet(), unet(context=shown)) == [True] * 3
    nothing = unet(context_mask=np.zeros_like(MASK))
    assert np.isfinite(nothing).all()
    assert same(nothing, unet(context_mask=np.zeros_like(MASK), context=-context))
    everything = unet(context_mask=np.ones_like(MASK))
    assert same(everything, unet(context_mask=None))


def test_padding_can_be_read_as_glide_does(decoder: Network) -> None:
    """Without `masks_padding` the learned padding vectors are context like words."""
    network = Network(Decoder(replace(DECODER, masks_padding=False)), decoder.inputs)
    network.params = decoder.params
    assert changed_rows(decoder(), network()) == [True, False, True]


def test_decoders_row_depends_on_no_other_row(decoder: Network) -> None:
    whole = decoder()
    for row in range(3):
        alone = {k: np.repeat(v[row : row + 1], 3, axis=0) for k, v in decoder.inputs.items()}
        assert same(decoder(**alone)[0], whole[row])


def test_decoder_depends_on_time(decoder: Network) -> None:
    assert changed_rows(decoder(), decoder(t=T - 1)) == [True] * 3


def test_decoders_embedding_scale_is_the_square_root_of_its_width() -> None:
    assert DECODER.scale == pytest.approx(12**0.5)
    assert replace(DECODER, embedding_scale=1.0).scale == 1.0


# -- prior


@pytest.mark.parametrize("name", ["text_embedding", "noisy", "t"])
def test_prior_depends_on(name: str, prior: Network) -> None:
    value = prior.inputs[name]
    other = value - 1 if name == "t" else value + 0.5
    assert changed_rows(prior(), prior(**{name: other})) == [True] * 3


def test_prior_depends_on_its_query(prior: Network) -> None:
    moved = Network(prior.module, prior.inputs)
    moved.params = prior.params | {"query": prior.params["query"] + draw(1, 16)}
    assert changed_rows(prior(), moved()) == [True] * 3


def test_prior_reads_the_caption_and_not_its_padding(prior: Network) -> None:
    states = prior.inputs["text_states"]
    hidden = np.where(MASK[..., None], states, states + 5)
    assert same(prior(), prior(text_states=hidden))
    shown = np.where(MASK[..., None], states + 5, states)
    assert changed_rows(prior(), prior(text_states=shown)) == [True] * 3


def test_priors_row_depends_on_no_other_row(prior: Network) -> None:
    whole = prior()
    for row in range(3):
        alone = {k: np.repeat(v[row : row + 1], 3, axis=0) for k, v in prior.inputs.items()}
        assert same(prior(**alone)[0], whole[row])


@pytest.mark.parametrize("width", [256, 512, 640, 768, 1024, 1280])
def test_priors_scale(width: int) -> None:
    expected = {256: 8.60, 512: 12.16, 640: 13.60, 768: 14.90, 1024: 17.2, 1280: 19.23}
    assert round(PriorConfig(width).scale, 2) == expected[width]


def test_causal_mask_lets_nothing_through_from_later() -> None:
    tower, x = Transformer(VISION), draw(8, 2, 5, 16)
    params = random_params(tower, x)
    later = x.copy()
    later[:, 3:] += 1
    mask = causal_mask(5)
    before, after = (tower.apply({"params": params}, v, mask) for v in (x, later))
    assert same(np.asarray(before)[:, :3], np.asarray(after)[:, :3])  # type: ignore[index]
    assert not same(np.asarray(before)[:, 3], np.asarray(after)[:, 3])  # type: ignore[index]


# -- CLIP


@pytest.fixture(scope="module")
def clip() -> Network:
    inputs = {"images": np.tanh(draw(9, 3, 8, 8, 3)), "tokens": TOKENS}
    network = Network(CLIP(CLIP_CONFIG), inputs)

    def both(*args: Any) -> Array:
        out: Any = network.module.apply(*args)
        return jnp.stack([out["image"], out["text"]], axis=1)

    network.jitted = jax.jit(both)
    return network


def test_clips_embeddings_have_unit_norm(clip: Network) -> None:
    np.testing.assert_allclose(np.linalg.norm(clip(), axis=-1), 1, rtol=1e-5)


def test_clips_text_ignores_what_follows_the_end_of_text(clip: Network) -> None:
    padding = np.where(MASK, TOKENS, 11)
    assert same(clip(), clip(tokens=padding))
    word = TOKENS.copy()
    word[:, 1] = [6, 6, 19]
    after = clip(tokens=word)
    assert changed_rows(clip()[:, 1], after[:, 1]) == [True, True, False]
    assert same(clip()[:, 0], after[:, 0])


def test_clips_row_depends_on_no_other_row(clip: Network) -> None:
    whole = clip()
    for row in range(3):
        alone = {k: np.repeat(v[row : row + 1], 3, axis=0) for k, v in clip.inputs.items()}
        assert same(clip(**alone)[0], whole[row])


def test_normalize_keeps_a_zero_vector() -> None:
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalize(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)


# -- how it is computed


@pytest.mark.parametrize("name", ["prior", "clip"])
def test_jit_equals_no_jit(name: str, request: pytest.FixtureRequest) -> None:
    network: Network = request.getfixturevalue(name)
    with jax.disable_jit():
        plain = network(network.jitted)
    assert same(network(), plain)


def in_bfloat16(config: Any) -> Any:
    if isinstance(config, DecoderConfig):
        text = replace(config.text, transformer=in_bfloat16(config.text.transformer))
        return replace(config, unet=in_bfloat16(config.unet), text=text)
    if isinstance(config, PriorConfig):
        return replace(config, transformer=in_bfloat16(config.transformer))
    return replace(config, dtype="bfloat16")


@pytest.mark.parametrize("name", ["decoder", "prior"])
def test_bfloat16_is_close_to_float32(name: str, request: pytest.FixtureRequest) -> None:
    network: Network = request.getfixturevalue(name)
    config = in_bfloat16(network.module.config)  # type: ignore[attr-defined]
    low = type(network.module)(config)  # type: ignore[call-arg]
    exact, rounded = network(), network(jax.jit(low.apply))
    assert rounded.dtype == np.float32
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.05
    shapes = jax.eval_shape(low.init, jax.random.key(0), *network.inputs.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def value_and_gradient(module: nn.Module, params: Any, *inputs: Array) -> Any:
    def loss(params: Any) -> Array:
        return jnp.sum(jnp.sin(module.apply({"params": params}, *inputs)))  # type: ignore[arg-type]

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_same_gradients(plain: nn.Module, saving: nn.Module, params: Any, *inputs: Any) -> None:
    expected = value_and_gradient(plain, params, *inputs)
    found = value_and_gradient(saving, params, *inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), expected, found
    )
    assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(expected[1]))


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_remat_changes_neither_values_nor_gradients(remat: str) -> None:
    x = draw(8, 2, 5, 16)
    plain, saving = Transformer(VISION), Transformer(replace(VISION, remat=remat))  # type: ignore[arg-type]
    params = random_params(plain, x)
    assert_same_gradients(plain, saving, params, x, None)


def test_dropout_acts_in_training_only() -> None:
    tower, x = Transformer(replace(VISION, dropout=0.5)), draw(8, 2, 5, 16)
    params = {"params": random_params(tower, x)}
    rngs = [{"dropout": jax.random.key(i)} for i in range(2)]
    one, other = (np.asarray(tower.apply(params, x, train=True, rngs=r)) for r in rngs)
    assert not same(one, other)
    still = np.asarray(tower.apply(params, x))
    assert same(still, np.asarray(Transformer(VISION).apply(params, x)))
