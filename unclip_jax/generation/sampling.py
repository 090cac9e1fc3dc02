"""How the stages of a model are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.errors import UserError


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn unless the call says otherwise; a model folder's sampling.json."""

    prior: SamplerConfig = SamplerConfig(
        method="ddpm", num_steps=64, thresholding="none", guidance_scale=1.0
    )
    """The paper's 64 steps, unguided; embeddings are not clipped to [-1, 1]."""
    decoder: SamplerConfig = SamplerConfig(method="ddim", num_steps=50, guidance_scale=3.0)
    num_candidates: int = 2
    """Image embeddings drawn for a picture; the one nearest to the text embedding is kept."""
    batch_size: int = 8
    """Pictures a device and call."""

    def __post_init__(self) -> None:
        if self.num_candidates < 1 or self.batch_size < 1:
            raise UserError(
                f"num_candidates is {self.num_candidates} and batch_size {self.batch_size}: "
                "give 1 or more of each"
            )
