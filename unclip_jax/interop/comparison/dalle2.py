"""`unclip compare dalle2_pytorch`: a prior or a decoder, layer by layer, then step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.comparison.dalle2_reference import (
    record_decoder,
    record_prior,
    unet_places,
)
from unclip_jax.interop.comparison.rows import Row, compare_arrays
from unclip_jax.interop.comparison.trace import Trace
from unclip_jax.interop.comparison.traced import Progress, obtain_trace
from unclip_jax.interop.dalle2_pytorch.decoder import Decoder
from unclip_jax.interop.dalle2_pytorch.decoder_checkpoint import find_decoder
from unclip_jax.interop.dalle2_pytorch.decoder_sampling import GivenNoise, sample
from unclip_jax.interop.dalle2_pytorch.folder import decoder_entry, describe_era, open_decoder
from unclip_jax.interop.dalle2_pytorch.prior import ImportedPrior, open_prior
from unclip_jax.interop.dalle2_pytorch.prior_checkpoint import read_prior_file
from unclip_jax.interop.dalle2_pytorch.prior_sampling import (
    TextCondition,
    make_sampler,
    predict,
)
from unclip_jax.interop.dalle2_pytorch.unet import Unet, guided
from unclip_jax.interop.detect import detect
from unclip_jax.interop.open_file import open_file

PRIOR_TOLERANCE, DECODER_TOLERANCE = 1e-4, 5e-3
"""Relative, of x after any step: a decoder's guidance amplifies rounding from step to step."""

_KEPT: dict[str, Any] = {
    "capture_intermediates": lambda _, method: method == "__call__",
    "mutable": ["intermediates"],
}


def run_dalle2(
    path: Path,
    config: Path | None,
    version: str | None,
    *,
    record: Path | None,
    trace: Path | None,
    seed: int,
    progress: Progress,
) -> tuple[list[Row], list[str], list[np.ndarray]]:
    """Rows, remarks, and the pictures of both sides if it is a decoder.

    Args:
        path: a file, or a folder with it.
        config: its JSON, where it is not in the file or beside it.
        version: the release that wrote it, where the file does not tell.
        record, trace: where the trace is written, or read from.
        seed: of all inputs and noise.
        progress: told what of the reference runs.
    Raises:
        UserError: another checkpoint, or a release that is not installed.
    """
    kind = detect(path)
    opened = open_file(path)
    if kind == "dalle2_prior":
        prior = open_prior(path, config, era=version)
        file = read_prior_file(opened.tree, what=str(path))
        recorded, rows, notes = obtain_trace(
            kind,
            file.network,
            lambda: record_prior(prior, file, seed, progress),
            record=record,
            trace=trace,
        )
        weights, pictures = prior.weights, []
        rows = [*compare_prior(prior, recorded), *rows]
    elif kind == "dalle2_decoder":
        prior, (decoder, weights) = None, open_decoder(path, config, version=version)
        tensors = find_decoder(opened.tensors, what=str(path))
        entry = decoder_entry(path, config) or {}
        unets = {name: x for name, x in tensors.items() if name.startswith("unets.")}
        recorded, rows, notes = obtain_trace(
            kind,
            unets,
            lambda: record_decoder(decoder, entry, tensors, seed, progress),
            record=record,
            trace=trace,
        )
        ours: list[np.ndarray] = []
        rows = [*compare_decoder(decoder, recorded, ours), *rows]
        pictures = [_shown(decoder, x) for x in (recorded.arrays["picture"], ours[-1])]
    else:
        raise UserError(f"{path} is {kind}: name a prior or a decoder of DALLE2-pytorch")
    era = describe_era(prior or decoder)
    said = f"ours: {weights} weights, {era}; reference: {recorded.facts['reference']}"
    return rows, [said, *notes], pictures


def compare_prior(prior: ImportedPrior, trace: Trace) -> Iterator[Row]:
    """Layers at one timestep, outputs at several, guidance, and every step of DDIM."""
    arrays, facts = trace.arrays, trace.facts
    x, own = jnp.asarray(arrays["in/x"]), arrays.get("in/self_cond")
    text = TextCondition(arrays["in/text_embed"], arrays.get("in/text_encodings"))  # pyright: ignore

    @jax.jit
    def run(params: Any, t: Any) -> Any:
        given = (x, t, text.embed, text.encodings)
        output, kept = prior.network.apply({"params": params}, *given, self_cond_BD=own, **_KEPT)
        return output, kept["intermediates"]["transformer"]["blocks"]["__call__"][0][0]  # pyright: ignore

    @jax.jit
    def run_guided(params: Any, t: Any) -> Any:
        scale = facts["guidance"]
        return predict(prior, params, x, t, text, cond_scale=scale, self_cond=own)  # pyright: ignore

    _, stacked = run(prior.params, _level(x, prior.config.timesteps // 2))
    for number, reference in trace.under("layer/").items():
        yield compare_arrays(f"prior: layer {number}", stacked[int(number)], reference)
    for t, reference in trace.under("out/").items():
        ours, _ = run(prior.params, _level(x, int(t)))
        yield compare_arrays(f"prior: output at t={t}", ours, reference)
    for t, reference in trace.under("guided/").items():
        ours = run_guided(prior.params, _level(x, int(t)))
        yield compare_arrays(f"prior: guided output at t={t}", ours, reference)
    states: list[np.ndarray] = []
    sampler, steps = make_sampler(
        prior,
        num_steps=facts["steps"],
        cond_scale=facts["guidance"],
        reference_compat=True,
        on_step=_keeper(states),
    )
    yield compare_arrays("prior: timesteps", steps.times, arrays["timesteps"], 0.0)
    embedding = sampler(prior.params, text, jnp.asarray(arrays["noise"][: steps.num_draws]))
    embedding = np.asarray(embedding)
    jax.effects_barrier()
    for i, (t, reference) in enumerate(
        zip(steps.times, trace.under("step/").values(), strict=False)
    ):
        yield compare_arrays(f"prior: step at t={t}", states[i], reference, PRIOR_TOLERANCE)
    yield compare_arrays("prior: embedding", embedding, arrays["embedding"], PRIOR_TOLERANCE)


def compare_decoder(decoder: Decoder, trace: Trace, pictures: list[np.ndarray]) -> Iterator[Row]:
    """The blocks of every U-Net, outputs, guidance, and every step of the cascade.

    Args:
        pictures: gets ours, [B, H, W, C].
    """
    config, facts = decoder.config, trace.facts
    for i in range(len(config.stages)):
        yield from _unet_rows(decoder, i, trace)
    stages = tuple(replace(stage, sample_timesteps=facts["steps"]) for stage in config.stages)
    shorter = replace(decoder, config=replace(config, stages=stages))
    noise, states = GivenNoise(list(trace.under("noise/").values())), []
    given: Any = trace.under("in/")
    batch = len(next(iter(trace.under("noise/").values())))
    picture = sample(
        shorter,
        noise,
        **given,
        batch=batch,
        cond_scale=facts["guidance"],
        reference_compat=True,
        on_step=_keeper(states),
    )
    picture = np.asarray(picture)
    jax.effects_barrier()
    before, at = list(trace.under("before/").values()), trace.arrays["timesteps"]
    if len(states) != len(before):
        raise UserError(
            f"the trace has {len(before)} steps where this decoder makes {len(states)}: record it "
            "with the same config"
        )
    for i, state in enumerate(states):
        # The last of a stage is its picture, which the next one enlarges.
        if i + 1 < len(before) and state.shape == before[i + 1].shape:
            name = f"decoder: {state.shape[1]} pixels, step at t={at[i]}"
            yield compare_arrays(name, state, before[i + 1], DECODER_TOLERANCE)
    pictures.append(picture)
    yield compare_arrays("decoder: picture", picture, trace.arrays["picture"], DECODER_TOLERANCE)


def _unet_rows(decoder: Decoder, number: int, trace: Trace) -> Iterator[Row]:
    name, unet, params = f"unet{number}", decoder.config.stages[number].unet, decoder.params[number]
    given = {key: jnp.asarray(array) for key, array in trace.under(f"{name}/in/").items()}
    wanted = {"image_embed": unet.cond_on_image_embeds}
    wanted["text_encodings"] = unet.cond_on_text_encodings
    given |= {key: jnp.asarray(x) for key, x in trace.under("in/").items() if wanted[key]}
    x, title = given.pop("x"), f"U-Net {number + 1}"

    @jax.jit
    def run(params: Any, t: Any) -> Any:
        output, kept = Unet(unet).apply({"params": params}, x, t, **given, **_KEPT)
        kept = kept["intermediates"]
        return output, {key: kept[key]["__call__"][0] for key in unet_places(unet)}

    @jax.jit
    def run_guided(params: Any, t: Any) -> Any:
        return guided(unet, params, x, t, trace.facts["guidance"], **given)

    _, found = run(params, _level(x, decoder.config.timesteps // 2))
    for key, reference in trace.under(f"{name}/block/").items():
        yield compare_arrays(f"{title}: {key}", found[key], reference)
    for t, reference in trace.under(f"{name}/out/").items():
        ours, _ = run(params, _level(x, int(t)))
        yield compare_arrays(f"{title}: output at t={t}", ours, reference)
    for t, reference in trace.under(f"{name}/guided/").items():
        ours = run_guided(params, _level(x, int(t)))
        yield compare_arrays(f"{title}: guided output at t={t}", ours, reference)


def _keeper(states: list[np.ndarray]) -> Callable[[Any], None]:
    return lambda x: states.append(np.asarray(x))


def _level(x: Any, t: int) -> Any:
    return jnp.full(len(x), t, jnp.int32)


def _shown(decoder: Decoder, picture: np.ndarray) -> np.ndarray:
    """From the decoder's range to [-1, 1]."""
    low, high = decoder.config.image_range
    return 2 * (picture - low) / (high - low) - 1
