"""Sampling from a decoder: DDPM or DDIM, one stage or the whole cascade, with inpainting.

Steps are laid out as arrays before the first one, the number of every Gaussian among them, and one
`lax.scan` goes through them: the noise of a trajectory can be given, draw by draw.

The rules are those of the current release for weights of any era. Its two mistakes are repeated
only with `reference_compat`: its DDIM ends at the noise level t = 0 and not at x_0, and what it
returns leaves the range of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.decoder import Decoder
from unclip_jax.interop.dalle2_pytorch.decoder_conditioning import (
    from_network,
    noised,
    resized,
    to_network,
)
from unclip_jax.interop.dalle2_pytorch.decoder_config import LOWRES_NOISE_STEPS, DecoderConfig
from unclip_jax.interop.dalle2_pytorch.decoder_loss import (
    learned_log_variance,
    split_output,
    start_of,
)
from unclip_jax.interop.dalle2_pytorch.schedule import NoiseSchedule
from unclip_jax.interop.dalle2_pytorch.unet import guided, unet_inputs


class Noise(Protocol):
    """Where Gaussians come from."""

    def draw(self, number: Array | int, shape: tuple[int, ...]) -> Array:
        """Draw number `number` of the whole cascade, which may be traced."""
        ...


@dataclass(frozen=True)
class KeyNoise:
    """From one key for every sample, so that a sample is the same in any batch."""

    keys: Array
    """[B] typed keys."""

    def draw(self, number: Array | int, shape: tuple[int, ...]) -> Array:
        folded = jax.vmap(jax.random.fold_in, (0, None))(self.keys, number)
        return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(folded)


@dataclass(frozen=True)
class GivenNoise:
    """Recorded arrays, in the order in which they were drawn."""

    arrays: Sequence[Array | np.ndarray]

    def draw(self, number: Array | int, shape: tuple[int, ...]) -> Array:
        own = [i for i, array in enumerate(self.arrays) if array.shape == tuple(shape)]
        places = np.zeros(len(self.arrays), np.int32)
        places[own] = np.arange(len(own))
        stack = jnp.stack([jnp.asarray(self.arrays[i]) for i in own])
        return stack[jnp.asarray(places)[number]]


@dataclass(frozen=True)
class Inpainting:
    """What to keep of an image (RePaint, Lugmayr et al. 2022)."""

    image: Array
    """[B, H, W, C] in the config's image range, of any size."""
    mask: Array
    """[B, H, W] bool, True is kept."""
    resample_times: int = 5
    """How often each step is repeated."""


@dataclass(frozen=True)
class Steps:
    """A trajectory: [N] arrays, one entry an evaluation of the U-Net."""

    t: np.ndarray
    t_next: np.ndarray
    """The level after the step; -1 is x_0."""
    paste: np.ndarray
    """Numbers of draws, -1 for none: the noise of what is kept,"""
    step: np.ndarray
    """of the step itself,"""
    renoise: np.ndarray
    """and of the way back to `t`."""
    draws: int
    """How many in all, the first one included."""


def plan_steps(
    timesteps: int, count: int | None, *, repeats: int | None = None, reference_compat: bool = False
) -> Steps:
    """Every evaluation of a trajectory.

    Args:
        timesteps: T.
        count: None or T: DDPM through all of them; fewer: that many steps of DDIM.
        repeats: of each step in inpainting; None without.
    """
    is_ddim = count is not None and count < timesteps
    if count is not None and is_ddim:
        times = np.linspace(0, timesteps, count + 2, dtype=np.float32)[:-1].astype(int)[::-1]
        pairs = [(a, b) for a, b in pairwise(times.tolist()) if a > b]
    else:
        pairs = [(t, t - 1) for t in reversed(range(timesteps))]
    rows, number = [], 1
    for t, t_next in pairs:
        last = t_next == (0 if is_ddim else -1)
        for repeat in reversed(range(repeats or 1)):
            wanted = (
                repeats is not None,
                not (is_ddim and last),
                repeats is not None and not last and repeat > 0,
            )
            numbers = []
            for is_wanted in wanted:
                numbers.append(number if is_wanted else -1)
                number += is_wanted
            end = -1 if is_ddim and last and not reference_compat else t_next
            rows.append((t, end, *numbers))
    return Steps(*np.array(rows, np.int32).T, draws=number)


def sample_stage(
    config: DecoderConfig,
    stage: int,
    params: Any,
    noise: Noise,
    shape: tuple[int, ...],
    conditions: dict[str, Array],
    *,
    first_draw: int = 0,
    cond_scale: float = 1.0,
    inpainting: Inpainting | None = None,
    reference_compat: bool = False,
    on_step: Callable[[Array], None] | None = None,
) -> tuple[Array, int]:
    """Images of one stage.

    Args:
        stage: from 0.
        params: of its U-Net.
        shape: [B, S, S, C].
        conditions: keyword arguments of `unet.Unet`.
        first_draw: number of the initial noise.
        on_step: is given x after every step, while it runs.
    Returns:
        [B, S, S, C] float32 in the config's image range, and the number of the next draw.
    """
    one, schedule = config.stages[stage], config.schedule(stage)
    repeats = None if inpainting is None else inpainting.resample_times
    steps = plan_steps(
        config.timesteps, one.sample_timesteps, repeats=repeats, reference_compat=reference_compat
    )
    is_ddim = one.sample_timesteps is not None and one.sample_timesteps < config.timesteps
    kept, mask = None, jnp.zeros((), bool)
    if inpainting is not None:
        kept = resized(to_network(config, inpainting.image), one.image_size)
        mask = resized(inpainting.mask[..., None], one.image_size).astype(bool)

    def draw(number: Array) -> Array:
        return noise.draw(jnp.maximum(number, 0) + first_draw, shape)

    def level(t: Array) -> Array:
        return jnp.full(shape[:1], t)

    def step(
        carry: tuple[Array, Array], row: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        (x, estimate), (t, t_next, paste, number, renoise) = carry, row
        times = level(t)
        if kept is not None:
            x = jnp.where(mask, schedule.q_sample(kept, times, draw(paste)), x)
        given = {**conditions, "self_cond": estimate} if one.unet.self_cond else conditions
        output = guided(one.unet, params, x, times, cond_scale, **given)
        prediction, fraction = split_output(output, config, stage)
        estimate = thresholded(config, start_of(schedule, one.prediction, x, times, prediction))
        fresh = draw(number)
        if is_ddim:
            x = _ddim(schedule, config.ddim_sampling_eta, x, estimate, t, t_next, fresh)
        else:
            log_variance = schedule.posterior_log_variance(times, x)
            if fraction is not None:
                log_variance = learned_log_variance(config, schedule, fraction, times)
            mean = schedule.posterior_mean(estimate, x, times)
            x = mean + jnp.where(t > 0, jnp.exp(0.5 * log_variance) * fresh, 0.0)
        if kept is not None:
            back = schedule.q_sample_from_to(x, level(jnp.maximum(t_next, 0)), times, draw(renoise))
            x = jnp.where(renoise >= 0, back, x)
        if on_step is not None:
            jax.debug.callback(on_step, x, ordered=True)
        return (x, estimate), None

    rows = (steps.t, steps.t_next, steps.paste, steps.step, steps.renoise)
    start = (noise.draw(first_draw, shape), jnp.zeros(shape))
    (x, _), _ = jax.lax.scan(step, start, jax.tree.map(jnp.asarray, rows))
    if kept is not None:
        x = jnp.where(mask, kept, x)
    image = from_network(config, x)
    if not reference_compat:
        image = jnp.clip(image, *config.image_range)
    return image, first_draw + steps.draws


def sample(
    decoder: Decoder,
    noise: Noise,
    *,
    image_embed: Array | None = None,
    text_encodings: Array | None = None,
    text_mask: Array | None = None,
    batch: int = 1,
    cond_scale: float | Sequence[float] = 1.0,
    image: Array | None = None,
    start_at_unet_number: int = 1,
    stop_at_unet_number: int | None = None,
    inpainting: Inpainting | None = None,
    reference_compat: bool = False,
    on_step: Callable[[Array], None] | None = None,
) -> Array:
    """Images of the last stage that runs, [B, S, S, C] float32 in the config's image range.

    Args:
        noise: of all stages; draws are numbered through.
        image_embed: [B, D] float32; not of an unconditional decoder.
        text_encodings: [B, L, E] float32, of a decoder with a text-conditioned stage.
        batch: B where nothing else tells it.
        cond_scale: of every stage, or one each.
        image: [B, H, W, C], what the stage before `start_at_unet_number` (from 1) would give.
        on_step: as for `sample_stage`.
    Raises:
        UserError: a condition that is missing or that the decoder does not have.
    """
    config = decoder.config
    count = len(config.stages)
    scales = [cond_scale] * count if isinstance(cond_scale, (int, float)) else list(cond_scale)
    batch = next((len(x) for x in (image_embed, text_encodings, image) if x is not None), batch)
    _check(config, image_embed, text_encodings, image, scales, start_at_unet_number)
    if start_at_unet_number > 1:
        image = resized(jnp.asarray(image), config.stages[start_at_unet_number - 2].image_size)
    number = 0
    for i in range(start_at_unet_number - 1, stop_at_unet_number or count):
        one = config.stages[i]
        shape = (batch, one.image_size, one.image_size, config.channels)
        conditions = unet_inputs(one.unet, image_embed, text_encodings, text_mask)
        if i:
            assert image is not None
            lowres = resized(image, one.image_size, config.image_range)
            if one.use_noise:
                level = int(config.lowres_noise_sample_level * LOWRES_NOISE_STEPS)
                levels = jnp.full((batch,), level, jnp.int32)
                lowres = noised(config, lowres, levels, noise.draw(number, shape))
                conditions["lowres_noise_level"] = levels
                number += 1
            conditions["lowres_image"] = to_network(config, lowres)
        image, number = sample_stage(
            config,
            i,
            decoder.params[i],
            noise,
            shape,
            conditions,
            first_draw=number,
            cond_scale=scales[i],
            inpainting=inpainting,
            reference_compat=reference_compat,
            on_step=on_step,
        )
    assert image is not None
    return image


def thresholded(config: DecoderConfig, x0: Array) -> Array:
    """Clipped to [-1, 1], or by a quantile of each sample's sizes (Saharia et al. 2022)."""
    if not config.use_dynamic_thres:
        return jnp.clip(x0, -1, 1)
    sizes = jnp.abs(x0).reshape(len(x0), -1)
    bound = jnp.maximum(jnp.quantile(sizes, config.dynamic_thres_percentile, axis=-1), 1)
    bound = bound[:, None, None, None]
    return jnp.clip(x0, -bound, bound) / bound


def _ddim(
    schedule: NoiseSchedule, eta: float, x: Array, x0: Array, t: Array, t_next: Array, noise: Array
) -> Array:
    """From level t to t_next (Song et al. 2020, eq. 12); no noise where the step ends the chain."""
    table = jnp.asarray(schedule.alphas_cumprod)
    now, after = table[t], jnp.where(t_next >= 0, table[t_next], 1.0)
    epsilon = schedule.noise_from_start(x, jnp.full(len(x), t), x0)
    sigma = eta * jnp.sqrt((1 - now / after) * (1 - after) / (1 - now))
    direction = jnp.sqrt(jnp.maximum(1 - after - sigma**2, 0))
    return jnp.sqrt(after) * x0 + jnp.where(t_next > 0, sigma, 0) * noise + direction * epsilon


def _check(
    config: DecoderConfig,
    image_embed: Array | None,
    text_encodings: Array | None,
    image: Array | None,
    scales: Sequence[float],
    start: int,
) -> None:
    if not config.unconditional and start == 1 and image_embed is None:
        raise UserError("image_embed is missing: this decoder is conditioned on it")
    if config.cond_on_text_encodings != (text_encodings is not None):
        fault = "missing" if text_encodings is None else "given"
        is_not = "" if text_encodings is None else "not "
        raise UserError(f"text_encodings are {fault}: this decoder is {is_not}conditioned on text")
    if len(scales) != len(config.stages) or not 1 <= start <= len(config.stages):
        raise UserError(
            f"{len(scales)} guidance scales and a start at {start}, but "
            f"{len(config.stages)} stages: correct them"
        )
    if start > 1 and image is None:
        raise UserError(f"image is missing: stage {start} enlarges one")
    dropped = config.image_cond_drop_prob > 0 or config.text_cond_drop_prob > 0
    if not dropped and any(scale != 1 for scale in scales):
        raise UserError(
            "cond_scale is not 1, but this decoder was trained without dropping conditions: use 1"
        )
