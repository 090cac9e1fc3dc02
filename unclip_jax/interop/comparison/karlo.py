"""Ours beside a trace of Karlo: every block, then every step, then the pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.config import from_dict
from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.diffusion.samplers import make_step
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.generation.captions import Caption
from unclip_jax.generation.decoder import Condition, make_decoder
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.interop.comparison.rows import Row, compare_arrays
from unclip_jax.interop.comparison.trace import Trace
from unclip_jax.interop.foreign_stage import ForeignModel
from unclip_jax.interop.unet_keys import unet_places
from unclip_jax.models.cached_transformer import Cache
from unclip_jax.models.clip import CLIP
from unclip_jax.models.decoder import Decoder, DecoderConfig
from unclip_jax.models.prior import (
    DiffusionPrior,
    PriorConfig,
    denoise_embedding,
    read_caption,
)
from unclip_jax.models.text import text_mask
from unclip_jax.models.unet import UNet, UNetConfig
from unclip_jax.models.upsampler import Upsampler, UpsamplerConfig, resize_low_resolution
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.weights import Stage

TRAJECTORY_TOLERANCES = {"prior": 1e-4, "decoder": 5e-3, "super_res": 5e-3}
"""Relative, of x after any step of a chain that runs on its own. The first step of a network that
predicts eps multiplies its rounding by 2e4 wherever the clip does not bind, and guidance 8
amplifies it from step to step. So every step is also compared from the reference's x: the guided
network, held to 1e-5 like all blocks, and the update."""
_ROUNDING = 2.0**-23


def compare_karlo(
    model: ForeignModel,
    trace: Trace,
    load: Callable[[str], Stage],
    pictures: dict[str, np.ndarray] | None = None,
) -> Iterator[Row]:
    """Rows in the order in which the data flows; a stage is in memory while its rows are made.

    Args:
        model: opened with diffusers' coefficients, which the trace was made with.
        load: a stage by its name, with parameters.
        pictures: gets ours, [B, H, W, 3] float32, by the names that the trace has for the
            reference's.
    """
    pictures = {} if pictures is None else pictures
    arrays, sampling = trace.arrays, from_dict(SamplingConfig, model.sampling)
    prior_steps, decoder_steps, upsampler_steps = trace.facts["steps"]
    prior_scale, decoder_scale = trace.facts["guidance"]
    caption, rows = _text(model.clip, arrays)
    yield from rows
    if "image/pixels" in arrays:
        yield _image(model.clip, arrays)
    if "prior" in model.stages and "prior/probe" in arrays:
        how = replace(sampling.prior, num_steps=prior_steps, guidance_scale=prior_scale)
        yield from _prior(load("prior"), arrays, caption, how)
    if "decoder" in model.stages and "decoder/probe" in arrays:
        how = replace(sampling.decoder, num_steps=decoder_steps, guidance_scale=decoder_scale)
        name = "decoder/picture"
        pictures[name] = yield from _decoder(load("decoder"), arrays, caption, how)
    for part, name in (("first", "upsampler_256"), ("last", "upsampler_256_last")):
        if name in model.stages and f"super_res_{part}/probe" in arrays:
            yield from _upsampler_probe(load(name), arrays, f"super_res_{part}")
    if "upsampler_256" in model.stages and "super_res/noise" in arrays:
        last = load("upsampler_256_last") if "upsampler_256_last" in model.stages else None
        how = replace(sampling.upsampler_256, num_steps=upsampler_steps)
        name, first = "super_res/picture", load("upsampler_256")
        pictures[name] = yield from _super_resolution(first, last, arrays, how)


def _text(clip: Stage, arrays: dict[str, np.ndarray]) -> tuple[Caption, list[Row]]:
    recipe: Any = clip.recipe
    tokens = jnp.asarray(arrays["text/tokens"])
    run = jax.jit(
        lambda p: CLIP(recipe.model).apply({"params": p}, tokens, method=CLIP.encode_text)
    )
    embedding, states = run(clip.params)  # pyright: ignore
    rows = [
        compare_arrays("text: states", states, arrays["text/states"]),
        compare_arrays("text: embedding", embedding, arrays["text/embedding"]),
    ]
    # What follows is given the reference's own, so that no error is counted twice.
    given = (jnp.asarray(arrays[f"text/{name}"]) for name in ("embedding", "states"))
    return Caption(tokens, *given), rows


def _image(clip: Stage, arrays: dict[str, np.ndarray]) -> Row:
    """The trace has what the network sees; ours takes pictures in [-1, 1] and normalises them."""
    config: Any = clip.recipe.model  # pyright: ignore[reportAttributeAccessIssue]
    mean, deviation = np.array(config.image_mean), np.array(config.image_std)
    pictures = 2 * (arrays["image/pixels"] * deviation + mean) - 1
    run = jax.jit(lambda p, x: CLIP(config).apply({"params": p}, x, method=CLIP.encode_image))
    embedding = run(clip.params, jnp.asarray(pictures, jnp.float32))
    return compare_arrays("image: embedding", embedding, arrays["image/embedding"])


def _prior(
    stage: Stage, arrays: dict[str, np.ndarray], caption: Caption, how: SamplerConfig
) -> Iterator[Row]:
    recipe: Any = stage.recipe
    probe = jnp.asarray(arrays["prior/probe"])
    blocks = len(_under(arrays, "prior/block/"))

    def probed(t: int) -> Any:
        return _prior_inside(recipe.model, stage.params, probe, _times(probe, t), caption)

    stacked = probed(500)[1]["transformer"]["blocks"]["__call__"][0][0]
    for i in range(blocks):
        reference = arrays[f"prior/block/transformer_blocks.{i}"]
        yield compare_arrays(f"prior: transformer_blocks.{i}", stacked[i], reference)
    yield from _outputs("prior", arrays, probed)
    half = len(probe) // 2
    empty, prompted = (jax.tree.map(lambda x, s=s: x[s], caption) for s in _halves(half))
    nothing = jax.tree.map(lambda x: x[:1], empty)

    denoise = partial(_guided_prior, recipe.model, how, stage.params, prompted, nothing)
    x = yield from _trajectory("prior", arrays, recipe.diffusion, how, denoise)
    assert stage.statistics is not None
    embedding = x * stage.statistics.deviation + stage.statistics.mean
    tolerance = TRAJECTORY_TOLERANCES["prior"]
    yield compare_arrays("prior: image embedding", embedding, arrays["prior/embedding"], tolerance)


def _decoder(
    stage: Stage, arrays: dict[str, np.ndarray], caption: Caption, how: SamplerConfig
) -> Generator[Row, None, np.ndarray]:
    recipe: Any = stage.recipe
    embedding = jnp.asarray(np.tile(arrays["prior/embedding"], (2, 1)))
    half = len(embedding) // 2
    has = jnp.arange(2 * half) >= half
    probe = jnp.asarray(arrays["decoder/probe"])

    def probed(t: int) -> Any:
        given = (probe, _times(probe, t), embedding, has, caption)
        return _decoder_inside(recipe.model, stage.params, *given)

    found = probed(500)[1]
    condition = found["text_to_time"]["__call__"][0] + found["embedding_to_time"]["__call__"][0]
    yield compare_arrays("decoder: time condition", condition, arrays["decoder/time_condition"])
    yield compare_arrays("decoder: context", found["encode"][0].context, arrays["decoder/context"])
    yield from _unet_rows("decoder", recipe.model.unet, arrays, found["unet"])
    yield from _outputs("decoder", arrays, probed)
    empty, prompted = (jax.tree.map(lambda x, s=s: x[s], caption) for s in _halves(half))
    condition = Condition(embedding[:half], prompted, jax.tree.map(lambda x: x[:1], empty))
    denoise = partial(_guided_decoder, recipe, how, stage.params, condition)
    x = yield from _trajectory("decoder", arrays, recipe.diffusion, how, denoise)
    tolerance = TRAJECTORY_TOLERANCES["decoder"]
    yield compare_arrays("decoder: picture", x, arrays["decoder/picture"], tolerance)
    return np.asarray(x)


def _upsampler_probe(stage: Stage, arrays: dict[str, np.ndarray], name: str) -> Iterator[Row]:
    recipe: Any = stage.recipe
    probe = jnp.asarray(arrays[f"{name}/probe"])

    def probed(t: int) -> Any:
        return _unet_inside(recipe.model.unet, stage.params["unet"], probe, _times(probe, t))

    yield from _unet_rows(name, recipe.model.unet, arrays, probed(500)[1])
    yield from _outputs(name, arrays, probed)


def _super_resolution(
    stage: Stage, last: Stage | None, arrays: dict[str, np.ndarray], how: SamplerConfig
) -> Generator[Row, None, np.ndarray]:
    recipe: Any = stage.recipe
    small = jnp.clip(jnp.asarray(arrays["decoder/picture"]), -1, 1)
    size = tuple(4 * side for side in small.shape[1:3])
    resized = resize_low_resolution(small, size, recipe.model.resize)  # pyright: ignore

    def denoise(xt: Any, t: Any) -> Any:
        own = last if last is not None and int(t[0]) == 0 else stage
        return _upsampler(recipe.model, own.params, xt, t, resized)

    x = yield from _trajectory("super_res", arrays, recipe.diffusion, how, denoise)
    tolerance = TRAJECTORY_TOLERANCES["super_res"]
    yield compare_arrays("super_res: picture", x, arrays["super_res/picture"], tolerance)
    return np.asarray(x)


# One program for all timesteps and for both upsamplers. The parameters are arguments: as constants
# they would be copied into it.


@partial(jax.jit, static_argnums=0)
def _prior_inside(config: PriorConfig, params: Any, x: Any, t: Any, text: Caption) -> Any:
    given = (x, t, text.embedding, text.states, text_mask(text.tokens))
    return _inside(DiffusionPrior(config), params, *given)


@partial(jax.jit, static_argnums=0)
def _decoder_inside(
    config: DecoderConfig, params: Any, x: Any, t: Any, embedding: Any, has: Any, text: Caption
) -> Any:
    given = (text.tokens, text_mask(text.tokens), text.embedding, text.states)
    return _inside(Decoder(config), params, x, t, embedding, has, *given)


@partial(jax.jit, static_argnums=0)
def _unet_inside(config: UNetConfig, params: Any, x: Any, t: Any) -> Any:
    return _inside(UNet(config), params, x, t)


def _inside(module: Any, params: Any, *given: Any) -> Any:
    """The output, and what every part of the network returned."""
    out, kept = module.apply(
        {"params": params},
        *given,
        capture_intermediates=lambda _, method: method in ("__call__", "encode"),
        mutable=["intermediates"],
    )
    return out, kept["intermediates"]


@partial(jax.jit, static_argnums=(0, 1))
def _guided_prior(
    config: PriorConfig,
    how: SamplerConfig,
    params: Any,
    text: Caption,
    nothing: Caption,
    x: Any,
    t: Any,
) -> Any:
    def read(text: Caption) -> Cache:
        return read_caption(config, params, text.embedding, text.states, text_mask(text.tokens))

    def run(xt: Any, t: Any, cache: Cache) -> Any:
        return denoise_embedding(config, params, cache, xt, t)

    return make_guided(run, text, nothing, how, has_variance=False, prepare=read)(x, t)


@partial(jax.jit, static_argnums=(0, 1))
def _guided_decoder(
    recipe: DecoderRecipe, how: SamplerConfig, params: Any, condition: Condition, x: Any, t: Any
) -> Any:
    return make_decoder(recipe, params, condition, how)(x, t)


@partial(jax.jit, static_argnums=0)
def _upsampler(config: UpsamplerConfig, params: Any, x: Any, t: Any, resized: Any) -> Any:
    return Upsampler(config).apply({"params": params}, x, t, resized, method=Upsampler.denoise)


def _trajectory(
    name: str,
    arrays: dict[str, np.ndarray],
    diffusion: Any,
    how: SamplerConfig,
    denoise: Callable[[Any, Any], Any],
) -> Generator[Row, None, Any]:
    """Each step from the reference's x: the guided network, then the update of the reference's own
    output. Then the chain from the reference's noise, on its own from the first step to the last.
    """
    chain = make_chain(diffusion, how)
    step = make_step(chain, how, prediction=diffusion.prediction, variance=diffusion.variance)
    draws = jnp.asarray(arrays[f"{name}/noise"])
    yield compare_arrays(
        f"{name}: timesteps", chain.timesteps[::-1], arrays[f"{name}/timesteps"], 0.0
    )
    x = forced = draws[:, 0]
    trajectory = []
    for i in range(len(chain)):
        index = len(chain) - 1 - i
        noise = draws[:, i + 1] if index else jnp.zeros_like(x)
        t = int(chain.timesteps[index])
        output, reached = (arrays[f"{name}/{kind}/{i:02d}"] for kind in ("output", "step"))
        ours = denoise(forced, _times(x, t))
        yield compare_arrays(f"{name}: t={t}, guided output", ours, output)
        ours = step(forced, jnp.asarray(output), _times(x, index), noise)
        tolerance = _update_tolerance(chain, index, diffusion.prediction)
        yield compare_arrays(f"{name}: t={t}, update", ours, reached, tolerance)
        x = step(x, denoise(x, _times(x, t)), _times(x, index), noise)
        tolerance = TRAJECTORY_TOLERANCES[name]
        trajectory.append(compare_arrays(f"{name}: trajectory to t={t}", x, reached, tolerance))
        forced = jnp.asarray(reached)
    yield from trajectory
    return x


def _update_tolerance(chain: Schedule, index: int, prediction: str) -> float:
    """1e-6, and what one rounding of x_t - sqrt(1 - abar) eps becomes in x_{t-1}."""
    if prediction == "x0":
        return 1e-6
    into_x0 = 1 / np.sqrt(chain.alphas_bar[index])
    return float(1e-6 + _ROUNDING * chain.posterior_mean_coef1[index] * into_x0)


def _unet_rows(
    name: str, config: UNetConfig, arrays: dict[str, np.ndarray], found: dict[str, Any]
) -> Iterator[Row]:
    for place in unet_places(config):
        reference = arrays[f"{name}/block/{place.diffusers}"]
        ours = found[place.target]["__call__"][0]
        yield compare_arrays(f"{name}: {place.diffusers}", ours, reference)


def _outputs(
    name: str, arrays: dict[str, np.ndarray], probed: Callable[[int], Any]
) -> Iterator[Row]:
    for t, reference in _under(arrays, f"{name}/out/").items():
        yield compare_arrays(f"{name}: output at t={t}", probed(int(t))[0], reference)


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _times(x: Any, t: int) -> Any:
    return jnp.full(len(x), t, jnp.int32)


def _halves(half: int) -> tuple[slice, slice]:
    return slice(0, half), slice(half, None)
