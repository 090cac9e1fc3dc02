"""What a sampler must not depend on, and what it must."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.process import q_sample
from unclip_jax.diffusion.samplers import (
    SamplerConfig,
    make_step,
    row_noise,
    sample,
    sampling_schedule,
    split_draws,
)
from unclip_jax.diffusion.schedule import Schedule, make_schedule, respace
from unclip_jax.diffusion.steps import ddim_invert_step, ddim_step, ddpm_step
from unclip_jax.errors import UserError

TRAINING = make_schedule("cosine")
SHAPE = (4, 3, 3, 2)
KEYS = jax.random.split(jax.random.key(7), SHAPE[0])
CONFIGS = {
    "ddpm": SamplerConfig(num_steps=6),
    "ddim": SamplerConfig(method="ddim", num_steps=6),
    "ddim eta": SamplerConfig(method="ddim", num_steps=6, eta=0.7, thresholding="dynamic"),
    "dpm_solver": SamplerConfig(method="dpm_solver", num_steps=6, spacing="log_snr"),
    "unipc": SamplerConfig(method="unipc", num_steps=6),
}
# Compilers may join a product and a sum into one rounding; a wrong noise differs by 1.
ROUNDING = {"rtol": 0, "atol": 2e-5}


def denoise(xt: jax.Array, timestep: jax.Array) -> jax.Array:
    """Some bounded v that mixes the pixels of a row and depends on the timestep."""
    mixed = xt.mean(axis=tuple(range(1, xt.ndim)), keepdims=True)
    phase = timestep.astype(jnp.float32).reshape(-1, *(1,) * (xt.ndim - 1)) / 300
    return jnp.sin(xt + 2 * mixed + phase)


@cache
def compiled(config: SamplerConfig, shape: tuple[int, ...]) -> Callable[..., jax.Array]:
    chain = sampling_schedule(TRAINING, config)
    return jax.jit(partial(sample, denoise, chain, shape, config=config, prediction="v"))


def run(config: SamplerConfig, shape: tuple[int, ...] = SHAPE, **arrays) -> np.ndarray:
    return np.asarray(compiled(config, shape)(**arrays))


def keyed_noise(chain: Schedule) -> tuple[jax.Array, jax.Array]:
    """The documented draws: fold_in(key, T) for x_T, fold_in(key, timestep) for a step."""

    def draw(number: int) -> jax.Array:
        rows = [jax.random.normal(jax.random.fold_in(key, number), SHAPE[1:]) for key in KEYS]
        return jnp.stack(rows)

    return draw(chain.num_train_timesteps), jnp.stack([draw(int(t)) for t in chain.timesteps])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_row_does_not_depend_on_the_others(config: SamplerConfig) -> None:
    together = run(config, keys=KEYS)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(run(config, keys=KEYS[order]), together[order], **ROUNDING)
    alone = run(config, (1, *SHAPE[1:]), keys=KEYS[2:3])
    np.testing.assert_allclose(alone[0], together[2], **ROUNDING)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_jit_changes_nothing(config: SamplerConfig) -> None:
    chain = sampling_schedule(TRAINING, config)
    with jax.disable_jit():
        plain = sample(denoise, chain, SHAPE, config=config, prediction="v", keys=KEYS)
    np.testing.assert_allclose(run(config, keys=KEYS), plain, **ROUNDING)
    assert plain.dtype == jnp.float32 and plain.shape == SHAPE


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_given_noise_equals_noise_by_key(config: SamplerConfig) -> None:
    x_T, noise = keyed_noise(sampling_schedule(TRAINING, config))
    by_key = run(config, keys=KEYS)
    np.testing.assert_allclose(run(config, x_T=x_T, noise=noise), by_key, **ROUNDING)
    np.testing.assert_allclose(run(config, keys=KEYS, x_T=x_T), by_key, **ROUNDING)
    np.testing.assert_allclose(run(config, keys=KEYS, noise=noise), by_key, **ROUNDING)


def test_the_last_step_draws_no_noise() -> None:
    for config in (CONFIGS["ddpm"], CONFIGS["ddim eta"]):
        x_T, noise = keyed_noise(sampling_schedule(TRAINING, config))
        expected = run(config, x_T=x_T, noise=noise)
        np.testing.assert_array_equal(run(config, x_T=x_T, noise=noise.at[0].add(9.0)), expected)
        other = run(config, x_T=x_T, noise=noise.at[1].add(9.0))
        assert np.abs(other - expected).max() > 1000 * ROUNDING["atol"]


def test_the_same_image_key_gives_related_noise_in_other_chains() -> None:
    """Noise belongs to the training timestep: chains that share a step share its noise."""
    shared = row_noise(KEYS, jnp.int32(500), SHAPE)
    _, noise = keyed_noise(respace(TRAINING, [0, 500, 999]))
    np.testing.assert_array_equal(noise[1], shared)


def test_the_network_is_given_training_timesteps_from_high_to_low() -> None:
    seen: list[np.ndarray] = []

    def record(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        seen.append(np.asarray(timestep))
        return xt

    config = SamplerConfig(num_steps=7)
    chain = sampling_schedule(TRAINING, config)
    with jax.disable_jit():
        sample(record, chain, SHAPE, config=config, prediction="v", keys=KEYS)
    expected = np.repeat([[999], [832], [666], [500], [333], [166], [0]], SHAPE[0], axis=1)
    np.testing.assert_array_equal(seen, expected)


def test_thresholding_comes_before_the_step() -> None:
    """An x_0 that is far out of range ends at the limit, whatever the start."""

    def far(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        return jnp.full_like(xt, -30.0)

    for config in CONFIGS.values():
        config = dataclasses.replace(config, thresholding="static", limit=0.5)
        chain = sampling_schedule(TRAINING, config)
        got = sample(far, chain, SHAPE, config=config, prediction="x0", keys=KEYS)
        np.testing.assert_array_equal(got, -0.5)


def test_embeddings_and_low_precision_networks() -> None:
    def half(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        return denoise(xt, timestep).astype(jnp.bfloat16)

    config = CONFIGS["ddpm"]
    chain = sampling_schedule(TRAINING, config)
    got = sample(half, chain, (4, 5), config=config, prediction="x0", keys=KEYS)
    assert got.shape == (4, 5) and got.dtype == jnp.float32 and np.isfinite(got).all()


def test_ddim_with_eta_one_is_ddpm_with_the_small_variance() -> None:
    chain = sampling_schedule(TRAINING, SamplerConfig(num_steps=20))
    rng = np.random.default_rng(0)
    x0, xt, noise = (jnp.asarray(rng.standard_normal((20, 3)), jnp.float32) for _ in range(3))
    t = jnp.arange(20)
    log_variance = jnp.asarray(np.log(np.maximum(chain.posterior_variance, 1e-20)), jnp.float32)
    ddpm = ddpm_step(chain, x0, xt, t, noise, log_variance[:, None])
    np.testing.assert_allclose(ddim_step(chain, x0, xt, t, noise, eta=1.0), ddpm, **ROUNDING)


def test_an_inversion_step_undoes_a_ddim_step_of_the_same_x0() -> None:
    chain = sampling_schedule(TRAINING, SamplerConfig(num_steps=20))
    rng = np.random.default_rng(1)
    x0, eps = (jnp.asarray(rng.standard_normal((20, 3)), jnp.float32) for _ in range(2))
    t = jnp.arange(20)
    xt = q_sample(chain, x0, t, eps)
    following = ddim_invert_step(chain, x0, xt, t)
    back = ddim_step(chain, x0[:-1], following[:-1], t[1:], None, eta=0.0)
    np.testing.assert_allclose(back, xt[:-1], **ROUNDING)
    # After the last step abar is 0: nothing but noise, without the sqrt(2.4e-9) of x_0.
    np.testing.assert_allclose(following[-1], eps[-1], rtol=0, atol=1e-6)


def test_steps_are_the_scan() -> None:
    """`make_step` repeated by hand is `sample`: what parity tests rely on."""
    config = CONFIGS["ddpm"]
    chain = sampling_schedule(TRAINING, config)
    xt, noise = keyed_noise(chain)
    step = make_step(chain, config, prediction="v")
    for i in reversed(range(len(chain))):
        output = denoise(xt, jnp.full(SHAPE[0], chain.timesteps[i]))
        xt = step(xt, output, jnp.full(SHAPE[0], i), noise[i])
    np.testing.assert_allclose(xt, run(config, keys=KEYS), **ROUNDING)


def test_the_start_is_scaled_noise() -> None:
    """GLIDE's 0.997 is a factor on the noise that is drawn, not on a start that is given."""
    config = dataclasses.replace(CONFIGS["ddim"], start_scale=0.5)
    x_T = row_noise(KEYS, 1000, SHAPE)
    np.testing.assert_array_equal(run(config, keys=KEYS), run(config, x_T=0.5 * x_T))
    np.testing.assert_array_equal(run(config, x_T=x_T), run(CONFIGS["ddim"], x_T=x_T))


def test_a_step_of_a_solver_needs_the_ones_before() -> None:
    for method in ("dpm_solver", "unipc"):
        config = CONFIGS[method]
        with pytest.raises(UserError, match="remembers"):
            make_step(sampling_schedule(TRAINING, config), config, prediction="v")


def test_timesteps_may_be_listed() -> None:
    listed = SamplerConfig(num_steps=[999, 0, 500])  # type: ignore[arg-type]
    assert listed.num_steps == (999, 0, 500) and hash(listed)
    assert list(sampling_schedule(TRAINING, listed).timesteps) == [0, 500, 999]
    for steps, text in [((0, 0, 5), "increasing"), ((0, 1000), "from 0 to 999")]:
        with pytest.raises(UserError, match=text):
            sampling_schedule(TRAINING, SamplerConfig(num_steps=steps))


def test_spacing_decides_where_a_number_of_steps_lies() -> None:
    even = sampling_schedule(TRAINING, SamplerConfig(num_steps=5))
    assert list(even.timesteps) == [0, 250, 500, 749, 999]
    log = sampling_schedule(TRAINING, SamplerConfig(num_steps=5, spacing="log_snr"))
    np.testing.assert_allclose(log.log_snr[1:4], [3.5, -0.5, -4.5], atol=0.1)
    assert log.timesteps[0] == 0 and log.timesteps[-1] == 999


def test_missing_or_misshapen_noise_is_a_one_line_error() -> None:
    ddpm, ddim = CONFIGS["ddpm"], CONFIGS["ddim"]
    x_T = jnp.zeros(SHAPE)
    run(ddim, x_T=x_T)
    for config, options, text in [
        (ddpm, {}, "give keys"),
        (ddpm, {"x_T": x_T}, "give keys"),
        (ddim, {}, "give keys"),
        (ddpm, {"keys": KEYS[:2]}, "keys has shape"),
        (ddpm, {"keys": KEYS, "x_T": x_T[:1]}, "x_T has shape"),
        (ddpm, {"keys": KEYS, "noise": x_T}, "noise has shape"),
        (ddpm, {"keys": KEYS, "variance_table": np.ones(3)}, "one variance for each"),
    ]:
        with pytest.raises(UserError, match=text) as error:
            run(config, **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(num_steps="fast27", method="ddim"),
        SamplerConfig(num_steps=(3, 500), guidance_interval=(100, 700)),
    ],
)
def test_config_is_json(config: SamplerConfig) -> None:
    assert SamplerConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("method", {"method": "euler"}),
        ("thresholding", {"thresholding": "soft"}),
        ("num_steps", {"num_steps": 0}),
        ("num_steps", {"num_steps": ()}),
        ("num_steps", {"num_steps": (1, 2.5)}),
        ("spacing", {"spacing": "karras"}),
        ("spacing", {"spacing": "log_snr", "num_steps": "fast27"}),
        ("eta", {"method": "ddim", "eta": 1.5}),
        ("eta", {"method": "unipc", "eta": 0.5}),
        ("start_scale", {"start_scale": 0.0}),
        ("limit", {"limit": 0.0}),
        ("percentile", {"percentile": 0.0}),
        ("guidance_rescale", {"guidance_rescale": 1.1}),
        ("guidance_interval", {"guidance_interval": (700, 100)}),
        ("guidance_interval", {"guidance_interval": (1, 2, 3)}),
        ("iterations", {"iterations": -1}),
    ],
)
def test_config_checks_its_fields(field: str, values: dict) -> None:
    with pytest.raises(UserError, match=field) as error:
        SamplerConfig(**values)
    assert "\n" not in str(error.value)


def test_draws_in_order_are_the_start_and_the_noise_of_each_step() -> None:
    draws = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 3)
    start, noise = split_draws(draws, 4)
    np.testing.assert_array_equal(start, draws[:, 0])
    assert noise is not None and noise.shape == (4, 2, 3)
    # The first step to be run is the last of the chain.
    for index, drawn in ((3, 1), (2, 2), (1, 3)):
        np.testing.assert_array_equal(noise[index], draws[:, drawn])
    assert split_draws(None, 4) == (None, None)
    start, noise = split_draws(draws[:, :1], 4)
    assert noise is None and start is not None
    with pytest.raises(UserError, match="3 draws for 4 steps"):
        split_draws(draws[:, :3], 4)
