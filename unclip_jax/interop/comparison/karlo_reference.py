"""Karlo by diffusers and transformers, component by component, recorded as a trace.

Their pipeline no longer opens; its components do. What the pipeline did with them (the text path,
guidance, the two upsamplers) is done here again, with the noise kept.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError
from unclip_jax.interop.comparison.trace import Trace, digests
from unclip_jax.interop.open_file import open_file

PROBES = (0, 500, 999)
"""Timesteps at which the networks are compared on noise alone."""
PRIOR_GUIDANCE, DECODER_GUIDANCE = 4.0, 8.0
COMPONENTS = (
    "text_encoder",
    "image_encoder",
    "prior",
    "text_proj",
    "decoder",
    "super_res_first",
    "super_res_last",
)


def record_karlo(
    folder: Path,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    steps: Sequence[int],
    seed: int,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Trace:
    """Run what the folder has of the components and write down everything.

    Args:
        folder: diffusers' layout.
        tokenizer: CLIP's, which pads with 0.
        steps: of prior, decoder and upsampler.
        seed: of all noise and of the probes' inputs.
        on_stage: told what runs.
    Raises:
        UserError: torch or diffusers is missing.
    """
    _require()
    present = [name for name in COMPONENTS if (folder / name).is_dir()]
    trace = Trace(
        "karlo",
        {
            "prompts": list(prompts),
            "steps": list(steps),
            "guidance": [PRIOR_GUIDANCE, DECODER_GUIDANCE],
            "components": present,
            "digests": {name: digests(open_file(folder / name).tensors) for name in present},
        },
    )
    random = np.random.default_rng(seed)
    with _no_gradient():
        on_stage("text_encoder")
        tokens = tokenizer([""] * len(prompts) + list(prompts))  # unconditional rows first
        _text(trace, folder, tokens)
        if "image_encoder" in present:
            on_stage("image_encoder")
            _image(trace, folder, random)
        if "prior" in present:
            on_stage("prior")
            _prior(trace, folder, random, steps[0])
            _free()
        if "decoder" in present:
            on_stage("decoder")
            _decoder(trace, folder, random, steps[1])
            _free()
        if "super_res_first" in present:
            on_stage("super_res")
            _super_resolution(trace, folder, random, steps[2])
            _free()
    return trace


def _text(trace: Trace, folder: Path, tokens: np.ndarray) -> None:
    import torch
    from transformers import CLIPTextModelWithProjection

    model: Any = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder").eval().float()
    out = model(torch.from_numpy(tokens.astype(np.int64)))
    trace.arrays |= {
        "text/tokens": tokens,
        "text/embedding": out.text_embeds.numpy(),
        "text/states": out.last_hidden_state.numpy(),
    }


def _image(trace: Trace, folder: Path, random: np.random.Generator) -> None:
    """The encoder alone; how pictures are resized for it is no part of a checkpoint."""
    import torch
    from transformers import CLIPVisionModelWithProjection

    where = folder / "image_encoder"
    model: Any = CLIPVisionModelWithProjection.from_pretrained(where).eval().float()
    side = model.config.image_size
    pixels = _normal(random, 2, 3, side, side)
    trace.arrays["image/pixels"] = _last(pixels)
    out = model(pixels)
    assert isinstance(out.image_embeds, torch.Tensor)
    trace.arrays["image/embedding"] = out.image_embeds.numpy()


def _prior(trace: Trace, folder: Path, random: np.random.Generator, steps: int) -> None:
    import torch
    from diffusers.models.transformers.prior_transformer import PriorTransformer

    model: Any = PriorTransformer.from_pretrained(folder / "prior").eval().float()
    text, states, mask = _text_inputs(trace)
    width = text.shape[1]

    def run(x: Any, t: Any) -> Any:
        out = model(
            x,
            timestep=t,
            proj_embedding=text,
            encoder_hidden_states=states,
            attention_mask=mask,
        )
        return out.predicted_image_embedding

    blocks = {f"transformer_blocks.{i}": i for i in range(len(model.transformer_blocks))}
    _probe(trace, "prior", model, run, _normal(random, len(text), width), list(blocks))

    def guided(x: Any, t: Any) -> Any:
        nothing, prompted = run(torch.cat([x, x]), t).chunk(2)
        return nothing + PRIOR_GUIDANCE * (prompted - nothing)

    scheduler = _first(folder, "prior_scheduler", "scheduler")
    x = _trajectory(trace, "prior", guided, scheduler, random, (len(text) // 2, width), steps)
    trace.arrays["prior/embedding"] = model.post_process_latents(x).numpy()


def _decoder(trace: Trace, folder: Path, random: np.random.Generator, steps: int) -> None:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    model: Any = UNet2DConditionModel.from_pretrained(folder / "decoder").eval().float()
    project: Any = UnCLIPTextProjModel.from_pretrained(folder / "text_proj").eval().float()
    text, states, mask = _text_inputs(trace)
    if "prior/embedding" not in trace.arrays:  # image variations: any embedding will do
        trace.arrays["prior/embedding"] = _normal(random, len(text) // 2, text.shape[1]).numpy()
    context, condition = project(
        image_embeddings=torch.from_numpy(trace.arrays["prior/embedding"]),
        prompt_embeds=text,
        text_encoder_hidden_states=states,
        do_classifier_free_guidance=True,
    )
    trace.arrays |= {
        "decoder/context": context.numpy(),
        "decoder/time_condition": condition.numpy(),
    }
    extra = context.shape[1] - mask.shape[1]
    mask = torch.nn.functional.pad(mask, (extra, 0), value=True)

    def run(x: Any, t: Any) -> Any:
        return model(
            sample=x,
            timestep=t,
            encoder_hidden_states=context,
            class_labels=condition,
            attention_mask=mask,
        ).sample

    size = model.config.sample_size
    shape = (len(text), 3, size, size)
    _probe(trace, "decoder", model, run, _normal(random, *shape), _unet_blocks(model))

    def guided(x: Any, t: Any) -> Any:
        nothing, prompted = run(torch.cat([x, x]), t).chunk(2)
        start, variance = nothing[:, :3], prompted[:, 3:]
        return torch.cat([start + DECODER_GUIDANCE * (prompted[:, :3] - start), variance], 1)

    shape = (len(text) // 2, 3, size, size)
    scheduler = _first(folder, "decoder_scheduler")
    x = _trajectory(trace, "decoder", guided, scheduler, random, shape, steps)
    trace.arrays["decoder/picture"] = _last(x)


def _super_resolution(trace: Trace, folder: Path, random: np.random.Generator, steps: int) -> None:
    import torch
    from diffusers.models.unets.unet_2d import UNet2DModel

    models: list[Any] = [
        UNet2DModel.from_pretrained(folder / f"super_res_{part}").eval().float()
        for part in ("first", "last")
        if (folder / f"super_res_{part}").is_dir()
    ]
    small = trace.arrays.get("decoder/picture")
    if small is None:
        side = models[0].config.sample_size // 4
        small = np.clip(_last(_normal(random, 1, 3, side, side)), -1, 1)
        trace.arrays["decoder/picture"] = small
    large = _resized(small)
    for model, part in zip(models, ("first", "last"), strict=False):
        x = torch.cat([_normal(random, *large.shape), large], 1)
        _probe(
            trace,
            f"super_res_{part}",
            model,
            lambda x, t, model=model: model(sample=x, timestep=t).sample,
            x,
            _unet_blocks(model),
        )
    count = iter(range(steps))

    def run(x: Any, t: Any) -> Any:
        model = models[-1] if next(count) == steps - 1 else models[0]
        return model(sample=torch.cat([x, large], 1), timestep=t).sample

    scheduler = _first(folder, "super_res_scheduler")
    x = _trajectory(trace, "super_res", run, scheduler, random, tuple(large.shape), steps)
    trace.arrays["super_res/picture"] = _last(x)


def _resized(small: np.ndarray) -> Any:
    """[B, h, w, 3] → [B, 3, 4 h, 4 w], antialiased cubic."""
    import torch

    x = torch.from_numpy(np.moveaxis(small, -1, 1).copy())
    size = [4 * side for side in x.shape[-2:]]
    return torch.nn.functional.interpolate(
        x, size=size, mode="bicubic", antialias=True, align_corners=False
    )


def _probe(
    trace: Trace,
    name: str,
    model: Any,
    run: Callable[[Any, Any], Any],
    x: Any,
    blocks: Sequence[str],
) -> None:
    """Outputs at the timesteps of `PROBES`, and at the middle one those of every block."""
    trace.arrays[f"{name}/probe"] = _last(x)
    for t in PROBES:
        hooks, found = [], {}
        if t == PROBES[1]:
            hooks = [
                model.get_submodule(block).register_forward_hook(_keeper(found, block))
                for block in blocks
            ]
        out = _last(run(x, t))
        for hook in hooks:
            hook.remove()
        trace.arrays |= {f"{name}/block/{block}": found[block] for block in blocks if found}
        trace.arrays[f"{name}/out/{t}"] = out


def _keeper(found: dict[str, np.ndarray], block: str) -> Callable[[Any, Any, Any], None]:
    def keep(_module: Any, _inputs: Any, out: Any) -> None:
        found[block] = _last(out[0] if isinstance(out, tuple) else out)

    return keep


def _trajectory(
    trace: Trace,
    name: str,
    denoise: Callable[[Any, Any], Any],
    scheduler_folder: Path,
    random: np.random.Generator,
    shape: tuple[int, ...],
    steps: int,
) -> Any:
    """The whole chain; every draw, guided output and x_{t-1} is kept."""
    import torch
    from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

    scheduler: Any = UnCLIPScheduler.from_pretrained(scheduler_folder)
    scheduler.set_timesteps(steps)
    draws = [_normal(random, *shape) for _ in range(steps)]
    trace.arrays[f"{name}/noise"] = np.stack([_last(draw) for draw in draws], 1)
    trace.arrays[f"{name}/timesteps"] = scheduler.timesteps.numpy()
    x, times = draws[0], scheduler.timesteps
    for i, t in enumerate(times):
        out = denoise(x, t)
        trace.arrays[f"{name}/output/{i:02d}"] = _last(out)
        previous = times[i + 1] if i + 1 < steps else None
        x = _step(scheduler, out, t, x, previous, draws[i + 1] if i + 1 < steps else None)
        trace.arrays[f"{name}/step/{i:02d}"] = _last(x)
    assert isinstance(x, torch.Tensor)
    return x


def _step(scheduler: Any, out: Any, t: Any, x: Any, previous: Any, noise: Any) -> Any:
    """One step of the scheduler with noise of ours: it draws its own through one function."""
    from unittest.mock import patch

    def draw(*_: Any, **__: Any) -> Any:
        assert noise is not None
        return noise

    with patch("diffusers.schedulers.scheduling_unclip.randn_tensor", draw):
        return scheduler.step(out, t, x, prev_timestep=previous).prev_sample


def _text_inputs(trace: Trace) -> tuple[Any, Any, Any]:
    import torch

    tokens = trace.arrays["text/tokens"]
    mask = np.arange(tokens.shape[1]) <= tokens.argmax(1)[:, None]
    arrays = (trace.arrays["text/embedding"], trace.arrays["text/states"], mask)
    return tuple(torch.from_numpy(array) for array in arrays)  # pyright: ignore


def _unet_blocks(model: Any) -> list[str]:
    """diffusers' names of all residual and attention blocks."""
    kinds = ("ResnetBlock2D", "Attention")
    return [name for name, module in model.named_modules() if type(module).__name__ in kinds]


def _normal(random: np.random.Generator, *shape: int) -> Any:
    import torch

    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))


def _last(x: Any) -> np.ndarray:
    """A torch tensor as numpy; pictures with their channels last."""
    array = x.detach().numpy()
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if array.ndim == 4 else array


def _first(folder: Path, *names: str) -> Path:
    return next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])


def _free() -> None:
    gc.collect()


@contextmanager
def _no_gradient() -> Iterator[None]:
    import torch

    with torch.no_grad():
        yield


def _require() -> None:
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the reference cannot run here ({error}): pip install 'unclip_jax[reference]', or "
            "give a trace that was recorded elsewhere with --trace"
        ) from error
