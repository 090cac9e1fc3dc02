"""The autoregressive prior: what may have influence, the cache, and its sizes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.networks import MASK, Network, changed_rows, draw, random_params, same
from tests.models.test_golden_counts import array, count, dense_count
from unclip_jax.errors import UserError
from unclip_jax.models.ar_prior import ARPrior, ARPriorConfig, code_loss, decode_step, prefill
from unclip_jax.models.cached_transformer import CachedTransformer, empty_cache
from unclip_jax.models.transformer import Transformer, TransformerConfig, causal_mask

CONFIG = ARPriorConfig(
    embedding_width=12,
    text_width=10,
    context_length=6,
    components=5,
    buckets=7,
    dot_buckets=4,
    text=TransformerConfig(width=8, depth=0, heads=2),
    transformer=TransformerConfig(width=16, depth=2, heads=2),
)
WITH_TEXT = replace(CONFIG, text=TransformerConfig(width=8, depth=1, heads=2))
CODES = np.array([[0, 6, 3, 2, 1], [5, 5, 1, 0, 6], [2, 4, 4, 6, 0]], np.int32)
CONDITION = ("dot", "text_embedding", "text_states", "text_mask")


def make_network(config: ARPriorConfig) -> Network:
    inputs = {
        "codes": CODES,
        "dot": np.array([0, 3, 2], np.int32),
        "text_embedding": draw(4, 3, 12) / 12**0.5,
        "text_states": draw(5, 3, 6, 10),
        "text_mask": MASK,
    }
    return Network(ARPrior(config), inputs)


@pytest.fixture(scope="module")
def plain() -> Network:
    return make_network(CONFIG)


@pytest.fixture(scope="module", params=[CONFIG, WITH_TEXT], ids=["clip_states", "own_encoder"])
def network(request: pytest.FixtureRequest) -> Network:
    return make_network(request.param)


def condition_of(network: Network) -> list[np.ndarray]:
    return [network.inputs[name] for name in CONDITION]


# -- what may have influence


@pytest.mark.parametrize("position", range(5))
def test_a_code_reaches_later_logits_only(position: int, network: Network) -> None:
    codes = CODES.copy()
    codes[:, position] = (codes[:, position] + 1) % 7
    before, after = network(), network(codes=codes)
    changed = [not same(before[:, i], after[:, i]) for i in range(5)]
    assert changed == [i > position for i in range(5)]


@pytest.mark.parametrize(("name", "change"), [("dot", 1), ("text_embedding", 0.5)])
def test_every_logit_depends_on(name: str, change: float, network: Network) -> None:
    after = network(**{name: network.inputs[name] + network.inputs[name].dtype.type(change)})
    for i in range(5):
        assert changed_rows(network()[:, i], after[:, i]) == [True] * 3


def test_the_caption_is_read_and_its_padding_is_not(network: Network) -> None:
    states = network.inputs["text_states"]
    hidden = np.where(MASK[..., None], states, states + 5)
    assert same(network(), network(text_states=hidden))
    shown = np.where(MASK[..., None], states + 5, states)
    assert changed_rows(network(), network(text_states=shown)) == [True] * 3


def test_a_row_depends_on_no_other_row(network: Network) -> None:
    whole = network()
    for row in range(3):
        alone = {k: np.repeat(v[row : row + 1], 3, axis=0) for k, v in network.inputs.items()}
        assert same(network(**alone)[0], whole[row])


# -- keys and values that are kept


def test_cached_logits_are_those_of_the_whole_sequence(network: Network) -> None:
    config: ARPriorConfig = network.module.config  # type: ignore[attr-defined]
    read = jax.jit(lambda *inputs: prefill(config, network.params, *inputs))
    step = jax.jit(lambda *inputs: decode_step(config, network.params, *inputs))
    logits, cache = read(*condition_of(network))
    found = [logits]
    for index in range(4):
        logits, cache = step(cache, CODES[:, index], jnp.asarray(index))
        found.append(logits)
    np.testing.assert_allclose(np.stack(found, axis=1), network(), rtol=1e-5, atol=1e-5)


def test_a_cached_tower_takes_any_number_of_positions_at_once() -> None:
    config = replace(CONFIG.transformer, activation="quick_gelu", mlp_width=24)
    x, tower = draw(8, 3, 6, 16), Transformer(config)
    params = random_params(tower, x)
    mask = causal_mask(6) & jnp.asarray(MASK)[:, None, None, :]
    expected: Any = jax.jit(tower.apply)({"params": params}, x, mask)
    advance: Any = jax.jit(CachedTransformer(config).apply)
    cache, found = empty_cache(config, jnp.asarray(MASK)), []
    for start, stop in ((0, 3), (3, 5), (5, 6)):
        states, cache = advance({"params": params}, x[:, start:stop], cache, start)
        found.append(states)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=1e-5, atol=1e-5)


def test_cached_and_plain_tower_have_the_same_parameters() -> None:
    config, x = CONFIG.transformer, jnp.zeros((1, 4, 16))
    cache = empty_cache(config, jnp.ones((1, 4), bool))
    plain = jax.eval_shape(Transformer(config).init, jax.random.key(0), x)["params"]
    cached = jax.eval_shape(
        lambda key: CachedTransformer(config).init(key, x, cache, 0), jax.random.key(0)
    )["params"]
    assert jax.tree.map(lambda a: a.shape, plain) == jax.tree.map(lambda a: a.shape, cached)


def test_bfloat16_is_kept_in_the_cache(plain: Network) -> None:
    config = replace(CONFIG, transformer=replace(CONFIG.transformer, dtype="bfloat16"))
    logits, cache = jax.jit(partial(prefill, config))(plain.params, *condition_of(plain))
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    expected = plain()[:, 0]
    error = np.linalg.norm(np.asarray(logits) - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 0.05


# -- loss


def test_code_loss_is_its_formula() -> None:
    logits = 3 * draw(13, 3, 5, 7)
    loss, metrics = code_loss(jnp.asarray(logits), jnp.asarray(CODES))
    exact = logits.astype(np.float64)
    own = np.take_along_axis(exact, CODES[..., None], axis=-1)[..., 0]
    assert loss == pytest.approx(np.mean(np.log(np.exp(exact).sum(axis=-1)) - own), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(exact.argmax(axis=-1) == CODES))


# -- sizes


def test_paper_size() -> None:
    """Blocks of 24 x 1664 and, where the paper's encoder is asked for, 24 x 2048."""
    config = ARPriorConfig(embedding_width=1024, text_width=1024, context_length=256)
    config = replace(config, text=replace(config.text, depth=24))
    inputs = (
        array(1, 319, dtype=jnp.int32),
        array(1, dtype=jnp.int32),
        array(1, 1024),
        array(1, 256, 1024),
        array(1, 256, dtype=bool),
    )
    shapes = jax.eval_shape(ARPrior(config).init, jax.random.key(0), *inputs)["params"]
    size = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    assert round(size["transformer"] / 1e6, 1) == 798.0
    assert round(size["text_transformer"] / 1e6, 1) == 1208.6
    width, text = 1664, 2048
    rest = {
        "text_in": dense_count(1024, text),
        "text_norm_out": 2 * text,
        "text_projection": dense_count(text, width),
        "text_embedding_projection": dense_count(1024, width),
        "dot_embedding": 1025 * width,
        "code_embedding": 1024 * width,
        "positional_embedding": (256 + 2 + 318) * width,
        "norm_out": 2 * width,
        "projection": dense_count(width, 1024),
    }
    assert {name: size[name] for name in size if "transformer" not in name} == rest
    own = count(ARPrior(replace(config, text=replace(config.text, depth=0))), *inputs)
    towers = size["text_transformer"] + rest["text_in"] + rest["text_norm_out"]
    assert own == sum(size.values()) - towers + (1024 - text) * width


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"components": 13}, "embedding_width 12"),
        ({"components": 1}, "components"),
        ({"buckets": 1}, "buckets"),
        ({"dot_buckets": 1}, "dot_buckets"),
    ],
)
def test_wrong_configs_are_refused(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(CONFIG, **change)
