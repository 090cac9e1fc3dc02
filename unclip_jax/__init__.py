"""DALL-E 2 (unCLIP) in JAX and Flax Linen.

Conventions everywhere: pictures are NHWC, float32 in [-1, 1] inside and uint8 at the borders; `t`
is an int32 timestep index, 0 the least noise; embeddings have unit norm unless a name says
otherwise; keys are typed (`jax.random.key`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unclip_jax.errors import UserError

if TYPE_CHECKING:
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.pipeline import UnCLIP

__version__ = "0.1.0"
__all__ = ["SamplingConfig", "UnCLIP", "UserError"]


def __getattr__(name: str) -> Any:
    """UnCLIP on first use: the command line must not import JAX to print its help."""
    if name == "UnCLIP":
        from unclip_jax.pipeline import UnCLIP

        return UnCLIP
    if name == "SamplingConfig":
        from unclip_jax.generation.sampling import SamplingConfig

        return SamplingConfig
    raise AttributeError(f"module 'unclip_jax' has no attribute {name!r}")
