"""GLIDE by its released code, recorded as a trace.

The code is on GitHub only (openai/glide-text2im) and was not at hand when this was written: its
calls follow its public interface and were run with a stand-in of that interface, not with the code
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.comparison.trace import Trace
from unclip_jax.interop.comparison.traced import (
    Progress,
    from_torch,
    normal,
    quiet,
    state_of,
    to_torch,
    watch_outputs,
)
from unclip_jax.interop.glide import (
    GLIDE_BASE,
    GLIDE_INPAINT,
    GLIDE_UPSAMPLE,
    GLIDE_UPSAMPLE_INPAINT,
)
from unclip_jax.interop.glide_networks import CHANNELS, GlideConfig
from unclip_jax.interop.tensors import Tensors
from unclip_jax.interop.unet_keys import unet_places

PROBES = (0, 500, 999)
"""Timesteps at which the network is compared on noise alone."""
STEPS = 10
GUIDANCE = 3.0
_PUBLISHED = (GLIDE_BASE, GLIDE_UPSAMPLE, GLIDE_INPAINT, GLIDE_UPSAMPLE_INPAINT)


def record_glide(
    config: GlideConfig,
    tensors: Tensors,
    prompts: Sequence[str],
    seed: int,
    progress: Progress,
) -> Trace:
    """Blocks of both transformers, outputs, and a short run: DDPM with guidance, of an upsampler
    DDIM without, as GLIDE does it.

    Args:
        config, tensors: of one of the four published files.
        progress: told what runs.
    Raises:
        UserError: glide_text2im is not installed, or the network is none that it can build.
    """
    create, base, upsampler = _package()
    if config not in _PUBLISHED:
        raise UserError(
            "this network is none of GLIDE's four, which is all that its code builds: give a trace "
            "with --trace"
        )
    options = (upsampler if config.is_upsampler else base)()
    options |= {"inpaint": config.is_inpainting, "use_fp16": False}
    options |= {"timestep_respacing": str(STEPS)}
    model, diffusion = create(**options)
    state = {name: x for name, x in tensors.items() if not name.startswith("unemb.")}
    model.load_state_dict(state_of(state), strict=True)
    model = model.float().eval()
    length = config.text.context_length
    padded = [
        model.tokenizer.padded_tokens_and_mask(model.tokenizer.encode(text) if text else [], length)
        for text in [*prompts, *([""] * len(prompts))]
    ]
    trace = Trace("glide", {"reference": "glide_text2im", "prompts": list(prompts)})
    arrays, random = trace.arrays, np.random.default_rng(seed)
    arrays["in/tokens"] = np.array([tokens for tokens, _ in padded], np.int32)
    arrays["in/mask"] = np.array([mask for _, mask in padded], bool)
    side, rows = config.unet.image_size, len(padded)
    arrays["in/x"] = normal(random, rows, side, side, CHANNELS)
    if config.is_upsampler:
        small = np.clip(normal(random, rows, side // 4, side // 4, CHANNELS), -1, 1)
        arrays["in/low_resolution"] = np.round((small + 1) * 127.5) / np.float32(127.5) - 1
    if config.is_inpainting:
        arrays["in/known"] = np.clip(normal(random, rows, side, side, CHANNELS), -1, 1)
        arrays["in/known_mask"] = (random.random((rows, side, side, 1)) < 0.5).astype(np.float32)
    given = {
        "tokens": to_torch(arrays["in/tokens"]),
        "mask": to_torch(arrays["in/mask"]),
    }
    names = {"low_resolution": "low_res", "known": "inpaint_image", "known_mask": "inpaint_mask"}
    given |= {
        theirs: to_torch(arrays[f"in/{ours}"])
        for ours, theirs in names.items()
        if f"in/{ours}" in arrays
    }
    with quiet():
        progress("network")
        _probe(trace, model, config, given)
        progress(f"{STEPS} steps")
        _trajectory(trace, model, diffusion, config, given, random)
    return trace


def _probe(trace: Trace, model: Any, config: GlideConfig, given: dict[str, Any]) -> None:
    import torch

    names = {place.openai: f"block/{place.openai}" for place in unet_places(config.unet)}
    for i in range(config.text.transformer.depth):
        names[f"transformer.resblocks.{i}"] = f"text/block/{i}"
    names |= {"final_ln": "text/states", "transformer_proj": "text/time"}
    x = to_torch(trace.arrays["in/x"])
    for t in PROBES:
        stop = watch_outputs(model, names if t == PROBES[1] else {}, trace.arrays)
        out = model(x, torch.full((len(x),), t), **given)
        stop()
        trace.arrays[f"out/{t}"] = from_torch(out)


def _trajectory(
    trace: Trace,
    model: Any,
    diffusion: Any,
    config: GlideConfig,
    given: dict[str, Any],
    random: np.random.Generator,
) -> None:
    import torch

    half, is_ddim = len(given["tokens"]) // 2, config.is_upsampler
    scale = 1.0 if is_ddim else GUIDANCE

    def run(x: Any, t: Any, **_: Any) -> Any:
        if scale == 1:
            return model(x, t, **{name: value[:half] for name, value in given.items()})
        both = model(torch.cat([x, x]), torch.cat([t, t]), **given)
        with_text, without = both[:half], both[half:]
        eps, nothing = with_text[:, :CHANNELS], without[:, :CHANNELS]
        return torch.cat([nothing + scale * (eps - nothing), with_text[:, CHANNELS:]], 1)

    trace.facts |= {"steps": STEPS, "guidance": scale, "method": "ddim" if is_ddim else "ddpm"}
    shape = (half, *trace.arrays["in/x"].shape[1:])
    draws = [normal(random, *shape)]
    x, timesteps = to_torch(draws[0]), list(diffusion.timestep_map)[::-1]

    def draw(like: Any, **_: Any) -> Any:
        draws.append(normal(random, *shape))
        return to_torch(draws[-1]).to(like.dtype)

    for i in range(STEPS):
        step: Callable[..., Any] = diffusion.ddim_sample if is_ddim else diffusion.p_sample
        index = torch.full((half,), STEPS - 1 - i)
        with mock.patch.object(torch, "randn_like", draw):
            x = step(run, x, index, clip_denoised=True, model_kwargs={})["sample"]
        trace.arrays[f"step/{i:02d}"] = from_torch(x)
    trace.arrays |= {"noise": np.stack(draws, 1), "timesteps": np.array(timesteps)}


def _package() -> tuple[Any, Any, Any]:
    try:
        from glide_text2im import model_creation as creation  # pyright: ignore
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"glide_text2im cannot run here ({' '.join(str(error).split())}): install it from "
            "github.com/openai/glide-text2im, or give a trace that was recorded elsewhere with "
            "--trace"
        ) from error
    return (
        creation.create_model_and_diffusion,
        creation.model_and_diffusion_defaults,
        creation.model_and_diffusion_defaults_upsampler,
    )
