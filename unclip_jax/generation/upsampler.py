"""A small picture → one of four times its side."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.inpainting import Known, known_output
from unclip_jax.diffusion.samplers import SamplerConfig, row_noise, sample, split_draws
from unclip_jax.errors import UserError
from unclip_jax.generation.guided import make_chain
from unclip_jax.generation.tiling import TilingConfig, tiled_denoise
from unclip_jax.models.known import known_channels
from unclip_jax.models.upsampler import FACTOR, Upsampler, resize_low_resolution
from unclip_jax.training.degradations.low_resolution import augment
from unclip_jax.training.recipes.run import training_chain
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe


def upsample_picture(
    recipe: UpsamplerRecipe,
    params: Any,
    low_res: Array,
    keys: Array,
    config: SamplerConfig,
    tiling: TilingConfig | None = None,
    *,
    last_params: Any = None,
    noise: Array | None = None,
    known: Known | None = None,
) -> Array:
    """Pictures of four times the side (Ramesh et al. 2022, section 2.1).

    Args:
        params: of the upsampler.
        low_res: [B, h, w, 3] float32; clipped to [-1, 1], where the training pictures are.
        keys: [B] typed keys.
        tiling: works tile by tile; None on the whole picture.
        last_params: of the network that takes the last step, if it is another one (Karlo).
        noise: [B, steps, 4 h, 4 w, 3] float32 instead of the keys', see `split_draws`.
        known: the part of the result that is known, [B, 4 h, 4 w, ...]; an inpainting upsampler
            also sees it.
    Returns:
        [B, 4 h, 4 w, 3] float32 in [-1, 1].
    Raises:
        UserError: sides that the network cannot halve often enough.
    """
    model = recipe.model
    rows, height, width = low_res.shape[0], FACTOR * low_res.shape[1], FACTOR * low_res.shape[2]
    if height % model.multiple or width % model.multiple:
        raise UserError(
            f"pictures of {low_res.shape[1]} × {low_res.shape[2]} cannot be upsampled: their sides "
            f"must be multiples of {max(1, model.multiple // FACTOR)}"
        )
    low_res, levels = jnp.clip(low_res, -1, 1), None
    if model.has_augmentation:
        levels = jnp.full((rows,), model.sampling_augmentation)
        # The chain takes the numbers up to num_timesteps.
        level_noise = row_noise(keys, recipe.diffusion.num_timesteps + 1, low_res.shape)
        low_res = augment(low_res, levels, level_noise)
    chain = make_chain(recipe.diffusion, config)
    resized = resize_low_resolution(low_res, (height, width), model.resize)
    module = Upsampler(model)

    aligned = [resized]
    if known is not None and model.is_inpainting:
        aligned.append(known_channels(known.x0, known.keep))

    def denoise(xt: Array, t: Array, resized: Array, seen: Array | None = None) -> Array:
        def run(own: Any) -> Any:
            inputs = (xt, t, resized, levels, seen)
            return module.apply({"params": own}, *inputs, method=Upsampler.denoise)

        if last_params is None:
            return run(params)
        is_last = t[0] == chain.timesteps[0]  # all rows are at the same step
        return jax.lax.cond(is_last, lambda: run(last_params), lambda: run(params))

    def denoise_whole(xt: Array, t: Array) -> Array:
        return denoise(xt, t, *aligned)

    start, step_noise = split_draws(noise, len(chain))
    run = denoise_whole if tiling is None else tiled_denoise(denoise, tiling, *aligned)
    kinds: Any = {
        "prediction": recipe.diffusion.prediction,
        "variance": recipe.diffusion.variance,
    }
    if known is not None:
        run = known_output(run, training_chain(recipe.diffusion), known, **kinds)
    large = sample(
        run,
        chain,
        (rows, height, width, 3),
        config=config,
        keys=keys,
        x_T=start,
        noise=step_noise,
        **kinds,
    )
    return large if known is None else jnp.where(known.keep, known.x0, large)
