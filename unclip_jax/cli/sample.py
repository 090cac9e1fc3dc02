"""sample.py VERB ...: pictures on disk from a trained model. The verb so far: text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unclip_jax.cli.overrides import parse
from unclip_jax.cli.prompts import check_prompts, read_prompts
from unclip_jax.errors import UserError

VERBS = ("text",)
COUNTS = (
    "num_images",
    "steps",
    "prior_steps",
    "upsample_steps",
    "candidates",
    "batch_size",
    "tile",
)

STEPS = re.compile(r"fast27|ddim[0-9]+|[0-9]+(,[0-9]+)*")
"""How steps are written that are more than a number."""


@dataclass(frozen=True)
class TextOptions:
    """Pictures from text: PNGs with their metadata, and a grid with a row for each prompt."""

    prompt: tuple[str, ...]
    """What to draw; several prompts in quotes."""
    prompts: str | None = None
    """File of prompts: .txt, one a line, # for comments; .jsonl, objects with "prompt"."""
    model: str = "emoji"
    """A shipped model, or a folder with clip/, prior/ and decoder/, exported or runs."""
    prior: Literal["diffusion", "ar", "linear", "one_step", "none"] = "diffusion"
    """What turns the caption into an image embedding; the model needs that stage. none: the decoder
    draws from the caption alone, as GLIDE."""
    upsample: Literal[256, 1024] | None = None
    """Side of the pictures; the model needs the upsamplers up to it. None is the decoder's own."""
    num_images: int = 4
    """Pictures a prompt."""
    seed: int = 0
    """Picture i of a prompt is the same for the same seed, whatever else is drawn."""
    steps: int | str | None = None
    """Denoising steps of the decoder: a number, 'fast27', 'ddim50', or numbers a section such as
    '10,10,3,2,2'; None is the model's own."""
    sampler: Literal["ddpm", "ddim", "dpm_solver", "unipc"] | None = None
    """The decoder's sampler; dpm_solver and unipc need fewer steps."""
    eta: float | None = None
    """Noise that ddim draws: 0 none, 1 as much as ddpm."""
    spacing: Literal["respaced", "log_snr"] | None = None
    """Where a number of steps lies: evenly in time, or evenly in log signal-to-noise ratio, which
    --sampler dpm_solver and unipc take by themselves."""
    guidance: float | None = None
    """Guidance scale of the decoder: 1 follows the model, more follows the prompt harder."""
    guidance_rescale: float | None = None
    """How far guided outputs get the contrast of unguided ones back, 0 to 1."""
    guidance_interval: tuple[int, int] | None = None
    """First and last timestep of the training chain (0 to 999) that are guided."""
    thresholding: Literal["none", "static", "dynamic"] | None = None
    """What keeps the decoder's prediction in the range of pictures: clipping, or scaling."""
    clip_guidance: float | None = None
    """Steers the decoder by a CLIP that knows noise, a stage of the model, with this scale."""
    classifier_guidance: float | None = None
    """Steers the decoder to the class that the prompt names, by a stage `classifier`."""
    prior_steps: int | str | None = None
    """Denoising steps of the prior, as for --steps."""
    prior_variance: Literal["trained", "analytic"] | None = None
    """Noise of the diffusion prior's steps: as trained, or as `unclip fit-variance` measured."""
    prior_guidance: float | None = None
    """Guidance scale of the prior, diffusion or ar."""
    temperature: float | None = None
    """Of the ar prior's codes: 1 follows the model, 0 takes the likeliest."""
    top_p: float | None = None
    """The ar prior draws from the likeliest codes of this share."""
    upsample_steps: int | str | None = None
    """Denoising steps of each upsampler, as for --steps; GLIDE's is 'fast27'."""
    upsample_noise: float | None = None
    """Factor on the noise that the upsamplers start from; GLIDE's has 0.997."""
    tile: int | None = None
    """Upsample in tiles of this side, for pictures beyond the memory."""
    candidates: int | None = None
    """Image embeddings drawn a picture; the one nearest to the text is kept."""
    batch_size: int | None = None
    """Pictures a device and call; another number may change the last bit of a picture."""
    stages_at_once: Literal["all", "one"] | None = None
    """Weights on the devices together: of all stages, or of one at a time for less memory."""
    out: str = "out"
    """Folder for the pictures. Those that are in it and were made from the same prompt, seed,
    settings and weights stay as they are, so a job that was killed continues; others of the same
    number and prompt are replaced. SIGTERM and Ctrl-C end a job after the micro-batch that is being
    drawn, with exit code 143 and 130; a second one ends it at once."""

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            if isinstance(value, int) and value < 1:
                raise UserError(f"{flag} is {value}: give 1 or more")
            if isinstance(value, str) and not STEPS.fullmatch(value):
                raise UserError(
                    f"{flag} is {value!r}: give a number, 'fast27', 'ddim50', or numbers a section "
                    "such as '10,10,3,2,2'"
                )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}: give 0 to {2**32 - 1}")


def main(arguments: Sequence[str]) -> int:
    """Runs a verb; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: sample.py VERB ...\n\nverbs: {', '.join(VERBS)}\n\n{__doc__}")
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError(f"verb {verb!r} is unknown: choose one of {', '.join(VERBS)}")
    options = parse(TextOptions, rest, default=None, program="sample.py text")
    prompts = check_prompts(options.prompt)
    if options.prompts is not None:
        prompts += read_prompts(Path(options.prompts))
    if not prompts:
        raise UserError('there is no prompt: sample.py text "a red apple, 3d style", or --prompts')
    return _draw(options, prompts)


def _draw(options: TextOptions, prompts: list[str]) -> int:
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    from unclip_jax.cli.hosts import join_hosts
    from unclip_jax.cli.runtime import prepare_jax
    from unclip_jax.training.stop_requests import StopRequests

    with StopRequests("stopped: the same command continues") as stop:
        prepare_jax()
        join_hosts()
        from unclip_jax.cli.draw_pictures import draw_pictures
        from unclip_jax.generation.drawing import Request

        requests = [Request(p, options.seed, i) for p in prompts for i in range(options.num_images)]
        return draw_pictures(
            options.model,
            requests,
            lambda default: _sampling(options, default),
            out,
            stop,
            columns=options.num_images,
            prior=options.prior,
            upsample=options.upsample,
        )


def _sampling(options: TextOptions, default: Any) -> Any:
    """The model's sampling with what the command line says on top."""

    def changed(config: Any, **values: Any) -> Any:
        return replace(config, **{name: v for name, v in values.items() if v is not None})

    spacing = options.spacing
    if spacing is None and options.sampler in ("dpm_solver", "unipc"):
        steps = options.steps or default.decoder.num_steps
        spacing = "log_snr" if isinstance(steps, int) else "respaced"
    upsampling = {"num_steps": options.upsample_steps, "start_scale": options.upsample_noise}
    return changed(
        default,
        prior=changed(
            default.prior,
            num_steps=options.prior_steps,
            variance=options.prior_variance,
            guidance_scale=options.prior_guidance,
        ),
        ar_prior=changed(
            default.ar_prior,
            guidance_scale=options.prior_guidance,
            temperature=options.temperature,
            top_p=options.top_p,
        ),
        upsampler_256=changed(default.upsampler_256, **upsampling),
        upsampler_1024=changed(default.upsampler_1024, **upsampling),
        clip_guidance=options.clip_guidance,
        classifier_guidance=options.classifier_guidance,
        tile=options.tile,
        decoder=changed(
            default.decoder,
            method=options.sampler,
            num_steps=options.steps,
            eta=options.eta,
            spacing=spacing,
            thresholding=options.thresholding,
            guidance_scale=options.guidance,
            guidance_rescale=options.guidance_rescale,
            guidance_interval=options.guidance_interval,
        ),
        num_candidates=options.candidates,
        batch_size=options.batch_size,
        stages_at_once=options.stages_at_once,
    )
