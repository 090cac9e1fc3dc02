"""Ours beside a trace of Karlo: every block, then every step, then the pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.config import from_dict
from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.diffusion.samplers import make_step
from unclip_jax.generation.captions import Caption
from unclip_jax.generation.decoder import Condition, make_decoder
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.interop.comparison.rows import BLOCK_TOLERANCE, Row, compare_arrays
from unclip_jax.interop.comparison.trace import Trace
from unclip_jax.interop.foreign_stage import ForeignModel
from unclip_jax.interop.unet_keys import unet_places
from unclip_jax.models.clip import CLIP
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.text import text_mask
from unclip_jax.models.unet import UNet, UNetConfig
from unclip_jax.models.upsampler import Upsampler, resize_low_resolution
from unclip_jax.training.weights import Stage

TRAJECTORY_TOLERANCES = {"prior": 1e-4, "decoder": 5e-3, "super_res": 1e-4}
"""Relative, of x after any step. At guidance 8 the decoder amplifies rounding from step to step;
its blocks are held to 1e-5 like all others."""


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


def _prior(
    stage: Stage, arrays: dict[str, np.ndarray], caption: Caption, how: SamplerConfig
) -> Iterator[Row]:
    recipe: Any = stage.recipe
    module = DiffusionPrior(recipe.model)

    def run(xt: Any, t: Any, text: Caption, **options: Any) -> Any:
        mask = text_mask(text.tokens)
        given = (xt, t, text.embedding, text.states, mask)
        return module.apply({"params": stage.params}, *given, **options)

    probe = jnp.asarray(arrays["prior/probe"])
    blocks = len(_under(arrays, "prior/block/"))
    _, kept = run(probe, _times(probe, 500), caption, **_KEPT)
    stacked = kept["intermediates"]["transformer"]["blocks"]["__call__"][0][0]
    for i in range(blocks):
        reference = arrays[f"prior/block/transformer_blocks.{i}"]
        yield compare_arrays(f"prior: transformer_blocks.{i}", stacked[i], reference)
    yield from _outputs("prior", arrays, lambda t: run(probe, _times(probe, t), caption))
    half = len(probe) // 2
    empty, prompted = (jax.tree.map(lambda x, s=s: x[s], caption) for s in _halves(half))
    guided = make_guided(
        run, prompted, jax.tree.map(lambda x: x[:1], empty), how, has_variance=False
    )
    x = yield from _trajectory("prior", arrays, recipe.diffusion, how, guided)
    assert stage.statistics is not None
    embedding = x * stage.statistics.deviation + stage.statistics.mean
    tolerance = TRAJECTORY_TOLERANCES["prior"]
    yield compare_arrays("prior: image embedding", embedding, arrays["prior/embedding"], tolerance)


def _decoder(
    stage: Stage, arrays: dict[str, np.ndarray], caption: Caption, how: SamplerConfig
) -> Generator[Row, None, np.ndarray]:
    recipe: Any = stage.recipe
    module, mask = Decoder(recipe.model), text_mask(caption.tokens)
    embedding = jnp.asarray(np.tile(arrays["prior/embedding"], (2, 1)))
    half = len(embedding) // 2
    has = jnp.arange(2 * half) >= half

    def run(xt: Any, t: Any, **options: Any) -> Any:
        text = (caption.tokens, mask, caption.embedding, caption.states)
        return module.apply({"params": stage.params}, xt, t, embedding, has, *text, **options)

    probe = jnp.asarray(arrays["decoder/probe"])
    _, kept = run(probe, _times(probe, 500), **_KEPT)
    found = kept["intermediates"]
    condition = found["text_to_time"]["__call__"][0] + found["embedding_to_time"]["__call__"][0]
    yield compare_arrays("decoder: time condition", condition, arrays["decoder/time_condition"])
    yield compare_arrays("decoder: context", found["context"][0][0], arrays["decoder/context"])
    yield from _unet_rows("decoder", recipe.model.unet, arrays, found["unet"])
    yield from _outputs("decoder", arrays, lambda t: run(probe, _times(probe, t)))
    empty, prompted = (jax.tree.map(lambda x, s=s: x[s], caption) for s in _halves(half))
    condition = Condition(embedding[:half], prompted, jax.tree.map(lambda x: x[:1], empty))
    denoise = make_decoder(recipe, stage.params, condition, how)
    x = yield from _trajectory("decoder", arrays, recipe.diffusion, how, denoise)
    tolerance = TRAJECTORY_TOLERANCES["decoder"]
    yield compare_arrays("decoder: picture", x, arrays["decoder/picture"], tolerance)
    return np.asarray(x)


def _upsampler_probe(stage: Stage, arrays: dict[str, np.ndarray], name: str) -> Iterator[Row]:
    recipe: Any = stage.recipe
    module, probe = UNet(recipe.model.unet), jnp.asarray(arrays[f"{name}/probe"])

    def run(t: int, **options: Any) -> Any:
        return module.apply({"params": stage.params["unet"]}, probe, _times(probe, t), **options)

    _, kept = run(500, **_KEPT)
    yield from _unet_rows(name, recipe.model.unet, arrays, kept["intermediates"])
    yield from _outputs(name, arrays, run)


def _super_resolution(
    stage: Stage, last: Stage | None, arrays: dict[str, np.ndarray], how: SamplerConfig
) -> Generator[Row, None, np.ndarray]:
    recipe: Any = stage.recipe
    module = Upsampler(recipe.model)
    small = jnp.clip(jnp.asarray(arrays["decoder/picture"]), -1, 1)
    size = tuple(4 * side for side in small.shape[1:3])
    resized = resize_low_resolution(small, size, recipe.model.resize)  # pyright: ignore

    @jax.jit
    def run(params: Any, xt: Any, t: Any) -> Any:
        return module.apply({"params": params}, xt, t, resized, method=Upsampler.denoise)

    def denoise(xt: Any, t: Any) -> Any:
        is_last = last is not None and int(t[0]) == 0
        return run(last.params if is_last and last is not None else stage.params, xt, t)

    x = yield from _trajectory("super_res", arrays, recipe.diffusion, how, denoise, jit=False)
    tolerance = TRAJECTORY_TOLERANCES["super_res"]
    yield compare_arrays("super_res: picture", x, arrays["super_res/picture"], tolerance)
    return np.asarray(x)


_KEPT: dict[str, Any] = {
    "capture_intermediates": lambda _, method: method in ("__call__", "context"),
    "mutable": ["intermediates"],
}


def _trajectory(
    name: str,
    arrays: dict[str, np.ndarray],
    diffusion: Any,
    how: SamplerConfig,
    denoise: Callable[[Any, Any], Any],
    *,
    jit: bool = True,
) -> Generator[Row, None, Any]:
    """The chain from the reference's noise, running on its own from the first step to the last."""
    chain = make_chain(diffusion, how)
    step = make_step(chain, how, prediction=diffusion.prediction, variance=diffusion.variance)
    run = jax.jit(denoise) if jit else denoise
    draws = jnp.asarray(arrays[f"{name}/noise"])
    yield compare_arrays(
        f"{name}: timesteps", chain.timesteps[::-1], arrays[f"{name}/timesteps"], 0.0
    )
    x = draws[:, 0]
    for i in range(len(chain)):
        index = len(chain) - 1 - i
        noise = draws[:, i + 1] if index else jnp.zeros_like(x)
        t = int(chain.timesteps[index])
        x = step(x, run(x, _times(x, t)), _times(x, index), noise)
        reference = arrays[f"{name}/step/{i:02d}"]
        yield compare_arrays(f"{name}: t={t}", x, reference, TRAJECTORY_TOLERANCES[name])
    return x


def _unet_rows(
    name: str, config: UNetConfig, arrays: dict[str, np.ndarray], found: dict[str, Any]
) -> Iterator[Row]:
    for place in unet_places(config):
        reference = arrays[f"{name}/block/{place.diffusers}"]
        ours = found[place.target]["__call__"][0]
        yield compare_arrays(f"{name}: {place.diffusers}", ours, reference)


def _outputs(name: str, arrays: dict[str, np.ndarray], run: Callable[[int], Any]) -> Iterator[Row]:
    for t, reference in _under(arrays, f"{name}/out/").items():
        yield compare_arrays(f"{name}: output at t={t}", run(int(t)), reference, BLOCK_TOLERANCE)


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _times(x: Any, t: int) -> Any:
    return jnp.full(len(x), t, jnp.int32)


def _halves(half: int) -> tuple[slice, slice]:
    return slice(0, half), slice(half, None)
