"""How codes are drawn from the autoregressive prior: one, a sequence, and as embeddings."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.networks import Network, draw
from tests.models.test_ar_prior import CODES, CONFIG, condition_of, make_network
from unclip_jax.errors import UserError
from unclip_jax.generation.code_sampling import (
    CodeSamplerConfig,
    draw_codes,
    sample_ar_prior,
    sample_codes,
    top_p_logits,
)
from unclip_jax.models.ar_prior import code_loss
from unclip_jax.models.embedding_codes import CodeConfig, EmbeddingCodes, decode, fit_codes

KEYS = jax.random.split(jax.random.key(0), 3)
GREEDY = CodeSamplerConfig(temperature=0.0)
EMPTY = (draw(7, 1, 6, 10), np.array([[True, True, False, False, False, False]]))


@pytest.fixture(scope="module")
def plain() -> Network:
    return make_network(CONFIG)


# -- drawing one code


def test_top_p_keeps_the_smallest_set() -> None:
    logits = draw(9, 6, 7)
    for top_p in (0.01, 0.5, 0.9, 1.0):
        found = np.asarray(top_p_logits(jnp.asarray(logits), top_p))
        for row, kept in zip(logits.astype(np.float64), found, strict=True):
            shares = np.exp(row) / np.exp(row).sum()
            order = np.argsort(-shares)
            size = int(np.searchsorted(np.cumsum(shares[order]), top_p - 1e-6)) + 1
            assert set(np.flatnonzero(np.isfinite(kept))) == set(order[:size])
            np.testing.assert_array_equal(kept[order[:size]], row[order[:size]])


def test_top_p_counts_codes_that_tie() -> None:
    kept = top_p_logits(jnp.zeros((1, 8)), 0.5)
    assert np.isfinite(kept).sum() == 4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature: float) -> None:
    draws, logits = 20_000, draw(10, 7)
    keys = jax.random.split(jax.random.key(1), draws)
    rows = jnp.broadcast_to(logits, (draws, 7))
    sampler = CodeSamplerConfig(temperature=temperature)
    found = np.bincount(np.asarray(draw_codes(sampler, rows, keys)), minlength=7) / draws
    weights = np.exp(logits.astype(np.float64) / temperature)
    expected = weights / weights.sum()
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_a_low_temperature_takes_the_most_likely() -> None:
    logits = draw(11, 50, 7)
    keys = jax.random.split(jax.random.key(2), 50)
    for temperature in (0.0, 1e-4):
        found = draw_codes(CodeSamplerConfig(temperature=temperature), jnp.asarray(logits), keys)
        np.testing.assert_array_equal(found, logits.argmax(axis=1))


# -- drawing a sequence


@cache
def draw_sequence(sampler: CodeSamplerConfig) -> Any:
    return jax.jit(partial(sample_codes, CONFIG, sampler))


def guided_logits(plain: Network, codes: np.ndarray, scale: float) -> np.ndarray:
    """From the whole sequence, with and without its condition."""
    dropped = {
        "dot": np.full(3, CONFIG.null_dot, np.int32),
        "text_embedding": np.zeros((3, 12), np.float32),
        "text_states": np.repeat(EMPTY[0], 3, axis=0),
        "text_mask": np.repeat(EMPTY[1], 3, axis=0),
    }
    cond, uncond = plain(codes=codes), plain(codes=codes, **dropped)
    return uncond + scale * (cond - uncond)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_greedy_codes_are_the_argmax_path(scale: float, plain: Network) -> None:
    expected = np.zeros((3, 5), np.int32)
    for i in range(5):
        expected[:, i] = guided_logits(plain, expected, scale)[:, i].argmax(axis=1)
    call = draw_sequence(replace(GREEDY, guidance_scale=scale))
    found = call(plain.params, *condition_of(plain), EMPTY, KEYS)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_guidance_scale_0_ignores_the_caption(plain: Network) -> None:
    call = draw_sequence(CodeSamplerConfig(guidance_scale=0.0, top_p=0.9))
    condition = condition_of(plain)
    other = [(condition[0] + 1) % 4, -condition[1], -condition[2], condition[3]]
    before, after = (call(plain.params, *given, EMPTY, KEYS) for given in (condition, other))
    np.testing.assert_array_equal(before, after)


def test_a_drawn_row_depends_on_its_own_key_and_caption_only(plain: Network) -> None:
    call = draw_sequence(CodeSamplerConfig(guidance_scale=1.5))
    whole = np.asarray(call(plain.params, *condition_of(plain), EMPTY, KEYS))
    for row in range(3):
        alone = [np.repeat(x[row : row + 1], 3, axis=0) for x in condition_of(plain)]
        found = np.asarray(call(plain.params, *alone, EMPTY, KEYS))
        np.testing.assert_array_equal(found[row], whole[row])
        assert (found[(row + 1) % 3] != whole[row]).any()  # another key


def test_code_i_is_drawn_with_the_keys_number_i(plain: Network) -> None:
    """Teacher forcing on what was drawn gives the logits that it was drawn from."""
    call = draw_sequence(CodeSamplerConfig(guidance_scale=1.5))
    found = np.asarray(call(plain.params, *condition_of(plain), EMPTY, KEYS))
    logits = guided_logits(plain, found, 1.5)
    for row in range(3):
        for i in range(5):
            key = jax.random.fold_in(KEYS[row], i)
            assert jax.random.categorical(key, logits[row, i]) == found[row, i]


# -- embeddings


@pytest.fixture(scope="module")
def codes() -> EmbeddingCodes:
    image = draw(12, 200, 12) * 0.7 ** np.arange(12)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text = image[::-1]
    return fit_codes(lambda: [(image, text)], CodeConfig(components=5, buckets=7, dot_buckets=4))


def test_sampled_embeddings_are_decoded_codes(plain: Network, codes: EmbeddingCodes) -> None:
    condition = condition_of(plain)[1:]
    single = replace(codes, dot_shares=jnp.asarray([0.4, 0.0, 0.6, 0.0]))
    call = jax.jit(partial(sample_ar_prior, CONFIG, GREEDY))
    found = np.asarray(call(single, EMPTY, plain.params, *condition, KEYS))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    # The top half of this distribution is the token 2.
    dot = np.full(3, 2, np.int32)
    tokens = draw_sequence(GREEDY)(plain.params, dot, *condition, EMPTY, KEYS)
    expected = np.array(decode(codes, tokens))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_prior_learns_what_it_is_shown(plain: Network) -> None:
    """After training on three captions, greedy sampling writes their codes."""
    module, condition = plain.module, condition_of(plain)
    params = jax.jit(module.init)(jax.random.key(0), *plain.inputs.values())["params"]
    optimizer = optax.adam(1e-2)

    def loss(params: Any) -> Any:
        logits: Any = module.apply({"params": params}, CODES, *condition)  # type: ignore[arg-type]
        return code_loss(logits, jnp.asarray(CODES))

    @jax.jit
    def train(params: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), (value, metrics["accuracy"])

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=150)

    (params, _), (losses, accuracies) = train(params)
    assert losses[0] > 1.5 and losses[-1] < 0.05 and accuracies[-1] == 1
    found = draw_sequence(GREEDY)(params, *condition, EMPTY, KEYS)
    np.testing.assert_array_equal(found, CODES)


@pytest.mark.parametrize("change", [{"temperature": -1.0}, {"top_p": 0.0}, {"dot_quantile": 1.0}])
def test_wrong_samplers_are_refused(change: dict) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        CodeSamplerConfig(**change)
