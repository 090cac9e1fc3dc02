"""What every verb of sample.py that draws takes: model, seed, samplers, guidance, memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from unclip_jax.errors import UserError

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


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """How pictures are drawn; None is the model's own."""

    model: str = "emoji"
    """A shipped model, or a folder with clip/, prior/ and decoder/, exported or runs."""
    prior: Literal["diffusion", "ar", "linear", "one_step", "none"] = "diffusion"
    """What turns the caption into an image embedding; the model needs that stage. none: the decoder
    draws from the caption alone, as GLIDE."""
    upsample: Literal[256, 1024] | None = None
    """Side of the pictures; the model needs the upsamplers up to it. None is the decoder's own."""
    seed: int = 0
    """Picture i is the same for the same seed, whatever else is drawn."""
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
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the networks compute in; bfloat16 is faster on accelerators, and changes pictures a
    little. None is what each was trained in."""
    no_metadata: bool = False
    """Leave no text in the pictures; manifest.jsonl still says what they were made from."""
    out: str = "out"
    """Folder for the pictures."""

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name, None)
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


def sampling_of(options: DrawingOptions, default: Any) -> Any:
    """`default`, a `SamplingConfig`, with what the command line says on top."""

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
        dtype=options.dtype,
    )
