"""A higher dot-product token gives embeddings nearer to the text (Ramesh et al. 2022, section 2.2).

The data is a circle: an image has a cosine d with its text, d uniform in [0, 1], on either side.
The text alone says little about the image, and the token of d says how far away it is.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unclip_jax.generation.code_sampling import CodeSamplerConfig, sample_ar_prior, sample_codes
from unclip_jax.models.ar_prior import ARPrior, ARPriorConfig, code_loss
from unclip_jax.models.clip import normalize
from unclip_jax.models.embedding_codes import (
    CodeConfig,
    EmbeddingCodes,
    decode,
    encode,
    encode_dot,
    fit_codes,
)
from unclip_jax.models.transformer import TransformerConfig

WIDTH, TOKENS, STEPS, ROWS = 2, 6, 600, 128
CONFIG = ARPriorConfig(
    embedding_width=WIDTH,
    text_width=4,
    context_length=1,
    components=WIDTH,
    buckets=8,
    dot_buckets=TOKENS,
    text=TransformerConfig(width=8, depth=0, heads=2),
    transformer=TransformerConfig(width=32, depth=1, heads=2),
)
MODEL = ARPrior(CONFIG)


def draw_pairs(key: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Images and texts, each [rows, WIDTH] of unit norm."""
    text_key, cosine_key, direction_key = jax.random.split(key, 3)
    text = normalize(jax.random.normal(text_key, (rows, WIDTH)))
    other = jax.random.normal(direction_key, (rows, WIDTH))
    across = normalize(other - jnp.sum(other * text, axis=1, keepdims=True) * text)
    cosine = jax.random.uniform(cosine_key, (rows, 1))
    return cosine * text + jnp.sqrt(1 - cosine**2) * across, text


def caption(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """States and mask of a caption without words: the text is its embedding alone."""
    return np.zeros((rows, 1, 4), np.float32), np.ones((rows, 1), bool)


@pytest.fixture(scope="module")
def codes() -> EmbeddingCodes:
    image, text = (np.asarray(x) for x in draw_pairs(jax.random.key(0), 4000))
    config = CodeConfig(components=WIDTH, buckets=CONFIG.buckets, dot_buckets=TOKENS)
    return fit_codes(lambda: [(image, text)], config)


def loss_of(
    params: Any, codes: EmbeddingCodes, image: jax.Array, text: jax.Array, dot: jax.Array
) -> jax.Array:
    targets = encode(codes, image)
    logits: Any = MODEL.apply({"params": params}, targets, dot, text, *caption(len(text)))
    return code_loss(logits, targets)[0]


@pytest.fixture(scope="module")
def untrained() -> Any:
    codes, dot = jnp.zeros((1, WIDTH), jnp.int32), jnp.zeros(1, jnp.int32)
    inputs = (codes, dot, jnp.zeros((1, WIDTH)), *caption(1))
    return jax.jit(MODEL.init)(jax.random.key(1), *inputs)["params"]


@pytest.fixture(scope="module")
def trained(untrained: Any, codes: EmbeddingCodes) -> Any:
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        image, text = draw_pairs(key, ROWS)
        gradient = jax.grad(loss_of)(params, codes, image, text, encode_dot(codes, image, text))
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(2), STEPS)
    start = (untrained, optimizer.init(untrained))
    (params, _), _ = jax.jit(lambda start, keys: jax.lax.scan(step, start, keys))(start, keys)
    return params


@pytest.fixture(scope="module")
def held_out() -> tuple[jax.Array, jax.Array]:
    return draw_pairs(jax.random.key(3), 512)


def test_the_token_is_read(trained: Any, codes: EmbeddingCodes, held_out: Any) -> None:
    """Another row's token costs more than the row's own."""
    own = encode_dot(codes, *held_out)
    loss = jax.jit(loss_of)
    right, wrong = (loss(trained, codes, *held_out, dot) for dot in (own, jnp.roll(own, 1)))
    assert wrong > right + 0.5


def test_a_higher_token_gives_a_higher_dot_product(
    trained: Any, untrained: Any, codes: EmbeddingCodes, held_out: Any
) -> None:
    _, text = held_out
    rows = len(text)
    keys = jax.random.split(jax.random.key(4), rows)
    call = jax.jit(partial(sample_codes, CONFIG, CodeSamplerConfig()))

    def mean_dot(params: Any, token: int) -> float:
        dot = jnp.full(rows, token, jnp.int32)
        drawn = call(params, dot, text, *caption(rows), caption(1), keys)
        return float(jnp.mean(jnp.sum(normalize(decode(codes, drawn)) * text, axis=1)))

    tokens = (0, TOKENS // 2, TOKENS - 1)
    low, middle, high = found = [mean_dot(trained, token) for token in tokens]
    assert middle > low + 0.25 and high > middle + 0.25
    cosines = (np.array(tokens) + 0.5) / TOKENS  # the tokens cut [0, 1] into equal parts
    np.testing.assert_allclose(found, cosines, atol=0.12)
    flat = [mean_dot(untrained, token) for token in tokens]
    assert max(flat) < min(flat) + 0.1


def test_the_upper_part_of_the_distribution_is_nearer(
    trained: Any, codes: EmbeddingCodes, held_out: Any
) -> None:
    _, text = held_out
    keys = jax.random.split(jax.random.key(5), len(text))

    def mean_dot(quantile: float) -> float:
        sampler = CodeSamplerConfig(dot_quantile=quantile)
        call = jax.jit(partial(sample_ar_prior, CONFIG, sampler))
        drawn = call(codes, caption(1), trained, text, *caption(len(text)), keys)
        return float(jnp.mean(jnp.sum(drawn * text, axis=1)))

    whole, upper_half = mean_dot(0.0), mean_dot(0.5)
    assert whole == pytest.approx(0.5, abs=0.12)
    assert upper_half == pytest.approx(0.75, abs=0.12)
