"""How Karlo and Kandinsky draw: ancestral steps, clipped predictions."""

from __future__ import annotations

from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.generation.sampling import SamplingConfig

ORIGINAL_PRIOR_LIMIT = 10.0
"""Where Karlo's own sampler clips the prior's prediction, in deviations of whitened space."""


def karlo_sampling(prior_limit: float) -> SamplingConfig:
    """25, 25 and 7 steps, guidance 4 and 8: Karlo's `fast` setting and diffusers' default."""
    return SamplingConfig(
        prior=_ancestral(25, 4.0, prior_limit),
        decoder=_ancestral(25, 8.0, 1.0),
        upsampler_256=_ancestral(7, 1.0, 1.0),
        num_candidates=1,
        batch_size=4,
    )


def _ancestral(steps: int, guidance: float, limit: float) -> SamplerConfig:
    clips = limit != float("inf")
    return SamplerConfig(
        method="ddpm",
        num_steps=steps,
        thresholding="static" if clips else "none",
        limit=limit if clips else 1.0,
        guidance_scale=guidance,
    )
