"""How the stages of a model are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unclip_jax.config import Dtype
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.errors import UserError
from unclip_jax.generation.code_sampling import CodeSamplerConfig

StagesAtOnce = Literal["all", "one"]


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn unless the call says otherwise; a model folder's sampling.json."""

    prior: SamplerConfig = SamplerConfig(
        method="ddpm", num_steps=64, thresholding="none", guidance_scale=1.0
    )
    """The paper's 64 steps, unguided; embeddings are not clipped to [-1, 1]."""
    ar_prior: CodeSamplerConfig = CodeSamplerConfig()
    decoder: SamplerConfig = SamplerConfig(method="ddim", num_steps=50, guidance_scale=3.0)
    clip_guidance: float = 0.0
    """Scale of the decoder's steering by a CLIP that knows noise, a stage `noised_clip`; GLIDE's
    best is 2. 0 is none."""
    classifier_guidance: float = 0.0
    """Scale of the decoder's steering to the class that the prompt names, by a stage `classifier`;
    ADM uses 0.5 to 10. 0 is none."""
    upsampler_256: SamplerConfig = SamplerConfig(method="ddim", num_steps=27)
    upsampler_1024: SamplerConfig = SamplerConfig(method="ddim", num_steps=15)
    num_candidates: int = 2
    """Image embeddings drawn for a picture; the one nearest to the text embedding is kept."""
    batch_size: int = 8
    """Pictures a device and call."""
    upsample_batch_size: int = 1
    """How many of them the upsamplers work on together."""
    stages_at_once: StagesAtOnce = "all"
    """Stages whose weights are on the devices together; 'one' needs less memory, and loads them
    again for every round of micro-batches."""
    tile: int | None = None
    """Side of the tiles in which the upsamplers work, for pictures beyond the memory; None works on
    the whole picture."""
    tile_overlap: int = 64
    """Pixels that neighbouring tiles share."""
    dtype: Dtype | None = None
    """What priors, decoder and upsamplers compute in; None is what each was trained in. bfloat16 is
    faster on accelerators, and the pictures differ a little."""

    def __post_init__(self) -> None:
        for name in ("num_candidates", "batch_size", "upsample_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give 1 or more")
        for name in ("decoder", "upsampler_256", "upsampler_1024"):
            if getattr(self, name).variance == "analytic":
                raise UserError(
                    f"{name}.variance is 'analytic', which is measured for the prior alone: "
                    "choose 'trained'"
                )
        if self.tile is not None and not 0 <= self.tile_overlap < self.tile:
            raise UserError(
                f"tile is {self.tile} and tile_overlap {self.tile_overlap}: give an overlap from 0 "
                "up to the tile"
            )
