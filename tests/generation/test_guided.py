"""Guidance inside an interval of noise levels only."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.generation.guided import make_guided

SCALE = SamplerConfig(guidance_scale=3.0)
INTERVAL = replace(SCALE, guidance_interval=(200, 600))
CONDITION, NOTHING = jnp.array([[1.0], [2.0]]), jnp.array([[-1.0]])
XT = jnp.arange(8.0).reshape(2, 4)


def network(xt: Array, t: Array, condition: Array) -> Array:
    return xt * condition + t[:, None]


def at(step: int) -> Array:
    return jnp.full(2, step, jnp.int32)


def test_steps_inside_are_those_without_an_interval() -> None:
    always = make_guided(network, CONDITION, NOTHING, SCALE, has_variance=False)
    sometimes = make_guided(network, CONDITION, NOTHING, INTERVAL, has_variance=False)
    for step in (200, 400, 600):
        np.testing.assert_array_equal(sometimes(XT, at(step)), always(XT, at(step)))


def test_steps_outside_do_not_compute_the_unconditional_half() -> None:
    broken = jnp.full_like(NOTHING, jnp.nan)
    guided = jax.jit(make_guided(network, CONDITION, broken, INTERVAL, has_variance=False))
    for step in (0, 199, 601, 999):
        expected = network(XT, at(step), CONDITION)
        np.testing.assert_array_equal(guided(XT, at(step)), expected)
    assert np.all(np.isnan(guided(XT, at(300))))


def test_each_row_has_its_own_scale_inside() -> None:
    scales = jnp.array([1.0, 2.0])
    guided = make_guided(network, CONDITION, NOTHING, INTERVAL, has_variance=False, scale=scales)
    with_it, without = network(XT, at(300), CONDITION), network(XT, at(300), NOTHING)
    expected = without + scales[:, None] * (with_it - without)
    np.testing.assert_allclose(guided(XT, at(300)), expected, rtol=1e-6)
    np.testing.assert_array_equal(guided(XT, at(100)), network(XT, at(100), CONDITION))
