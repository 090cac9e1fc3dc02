"""The diffusion prior's recipe."""

from __future__ import annotations

from dataclasses import dataclass

from unclip_jax.errors import UserError
from unclip_jax.models.prior import PriorConfig
from unclip_jax.training.recipes.run import DiffusionConfig, Run, check_share


@dataclass(frozen=True)
class PriorRecipe(Run):
    """Train the diffusion prior on a frozen CLIP (Ramesh et al. 2022, section 2.2)."""

    clip: str = "emoji"
    """The CLIP it works for: a run folder, an exported folder, or a shipped model's name."""
    model: PriorConfig = PriorConfig()
    diffusion: DiffusionConfig = DiffusionConfig(prediction="x0", variance="fixed_small")
    text_drop: float = 0.1
    """Share of the captions that become the empty one, for classifier-free guidance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("text_drop", self.text_drop)
        if self.model.is_whitened and self.model.scale != 1:
            raise UserError(
                "model.is_whitened uses embeddings as CLIP gives them: set model.embedding_scale 1"
            )
        if self.diffusion.variance == "learned_range":
            raise UserError("diffusion.variance of a prior is fixed_small or fixed_large")
