"""CLIP's recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unclip_jax.data.tokenizer import TokenizerConfig
from unclip_jax.errors import UserError
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.training.recipes.run import Run


@dataclass(frozen=True)
class CLIPRecipe(Run):
    """Train CLIP's two encoders (Radford et al. 2021)."""

    model: CLIPConfig = CLIPConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Symmetric cross-entropy (CLIP), or a sigmoid for each pair (SigLIP, Zhai et al. 2023)."""
    least_crop: float = 1.0
    """Smallest side of the random square crops of the training pictures, as a share of theirs; 1
    does not crop. CLIP crops pictures whose short side was resized to a little more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least_crop <= 1:
            raise UserError(f"least_crop is {self.least_crop}: give more than 0, at most 1")
        if self.model.context_length != self.tokenizer.context_length:
            raise UserError(
                f"model.context_length {self.model.context_length} must equal "
                f"tokenizer.context_length {self.tokenizer.context_length}"
            )
        if self.model.vocab_size < self.tokenizer.vocab_size:
            raise UserError(
                f"model.vocab_size {self.model.vocab_size} is smaller than tokenizer.vocab_size "
                f"{self.tokenizer.vocab_size}: make them equal"
            )
        if self.model.image_size != self.data.image_size:
            raise UserError(
                f"data.image_size {self.data.image_size} must equal model.image_size "
                f"{self.model.image_size}"
            )
