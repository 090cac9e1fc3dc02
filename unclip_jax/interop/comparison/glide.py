"""`unclip compare glide`: one of GLIDE's networks, block by block, then step by step."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.diffusion.samplers import make_step
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.interop.comparison.glide_reference import PROBES, record_glide
from unclip_jax.interop.comparison.rows import Row, compare_arrays
from unclip_jax.interop.comparison.trace import Trace
from unclip_jax.interop.comparison.traced import Progress, obtain_trace
from unclip_jax.interop.glide import GlideOptions, import_glide, infer_glide
from unclip_jax.interop.glide_networks import Glide, GlideConfig
from unclip_jax.interop.infer_unet import HeadOptions
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.unet_keys import unet_places
from unclip_jax.training.recipes.run import DiffusionConfig

TOLERANCE = 5e-3
"""Relative, of x after any step: guidance amplifies rounding from step to step."""


def run_glide(
    path: Path,
    prompts: Sequence[str],
    *,
    record: Path | None,
    trace: Path | None,
    seed: int,
    progress: Progress,
) -> tuple[list[Row], list[str], list[np.ndarray]]:
    """Rows, remarks, and the pictures of both sides.

    Args:
        path: one of the four networks' files.
        prompts: captions.
        record, trace: where the trace is written, or read from.
        seed: of all inputs and noise.
        progress: told what of the reference runs.
    Raises:
        UserError: another file, or neither the reference nor a trace.
    """
    tensors = open_file(path).tensors

    def run() -> Trace:
        config = infer_glide(tensors, what=str(path))
        return record_glide(config, tensors, prompts, seed, progress)

    recorded, rows, notes = obtain_trace("glide", tensors, run, record=record, trace=trace)
    notes = [f"reference: {recorded.facts['reference']}", *notes]
    config, params = import_glide(tensors, _options(recorded), what=str(path))
    pictures: list[np.ndarray] = []
    rows = [*compare_glide(config, params, recorded, pictures), *rows]
    return rows, notes, pictures


def compare_glide(
    config: GlideConfig, params: Any, trace: Trace, pictures: list[np.ndarray]
) -> Iterator[Row]:
    """Rows in the order in which the data flows.

    Args:
        pictures: gets those of both sides, [B, H, W, 3].
    """
    arrays = trace.arrays
    given = [jnp.asarray(arrays[f"in/{name}"]) for name in ("tokens", "mask")]
    known: list[Any] = [
        jnp.asarray(arrays[f"in/{name}"]) if f"in/{name}" in arrays else None
        for name in ("low_resolution", "known", "known_mask")
    ]
    network, x = Glide(config), jnp.asarray(arrays["in/x"])

    @jax.jit
    def run(params: Any, t: Any) -> Any:
        return network.apply(
            {"params": params},
            x,
            t,
            *given,
            *known,
            capture_intermediates=lambda _, method: method == "__call__",
            mutable=["intermediates"],
        )

    _, kept = run(params, _level(x, PROBES[1]))
    found = kept["intermediates"]
    stacked = found["text"]["transformer"]["blocks"]["__call__"][0][0]
    for i, reference in trace.under("text/block/").items():
        yield compare_arrays(f"text: block {i}", stacked[int(i)], reference)
    states = found["text"]["__call__"][0][0]
    yield compare_arrays("text: states", states, arrays["text/states"])
    condition = found["text_to_time"]["__call__"][0]
    yield compare_arrays("text: time condition", condition, arrays["text/time"])
    for place in unet_places(config.unet):
        ours = found["unet"][place.target]["__call__"][0]
        yield compare_arrays(f"{place.openai}", ours, arrays[f"block/{place.openai}"])
    for t, reference in trace.under("out/").items():
        out, _ = run(params, _level(x, int(t)))
        yield compare_arrays(f"output at t={t}", out, reference)
    conditions = (*given, *known)
    picture = yield from _trajectory(network, params, conditions, trace)
    pictures += [list(trace.under("step/").values())[-1], picture]


def _trajectory(
    network: Glide, params: Any, conditions: tuple[Any, ...], trace: Trace
) -> Generator[Row, None, np.ndarray]:
    """The chain from the reference's noise, running on its own from the first step to the last."""
    arrays, facts, c = trace.arrays, trace.facts, network.config
    how = SamplerConfig(
        method=facts["method"], num_steps=facts["steps"], guidance_scale=facts["guidance"]
    )
    diffusion = DiffusionConfig(
        schedule="linear" if c.is_upsampler else "cosine", variance="learned_range"
    )
    chain = make_chain(diffusion, how)
    yield compare_arrays("timesteps", chain.timesteps[::-1], arrays["timesteps"], 0.0)
    half = len(arrays["in/x"]) // 2
    prompted, nothing = (
        jax.tree.map(lambda leaf, part=part: leaf[part], conditions)
        for part in (slice(0, half), slice(half, None))
    )

    def run(xt: Any, t: Any, condition: Any) -> Any:
        return network.apply({"params": params}, xt, t, *condition)

    denoise = jax.jit(make_guided(run, prompted, nothing, how, has_variance=True))
    step = make_step(chain, how, prediction="eps", variance="learned_range")
    draws = jnp.asarray(arrays["noise"])
    x = draws[:, 0]
    for i in range(len(chain)):
        index = len(chain) - 1 - i
        t = int(chain.timesteps[index])
        noise = draws[:, i + 1] if index else jnp.zeros_like(x)
        x = step(x, denoise(x, _level(x, t)), _level(x, index), noise)
        yield compare_arrays(f"step at t={t}", x, arrays[f"step/{i:02d}"], TOLERANCE)
    return np.asarray(x)


def _options(trace: Trace) -> GlideOptions:
    """What a file's shapes do not tell: the published files', or what the trace says."""
    given = trace.facts.get("options", {})
    heads = HeadOptions(
        given.get("head_channels"), given.get("heads"), given.get("groups", HeadOptions().groups)
    )
    return GlideOptions(heads, given.get("text_heads"), given.get("image_size"))


def _level(x: Any, t: int) -> Any:
    return jnp.full(len(x), t, jnp.int32)
