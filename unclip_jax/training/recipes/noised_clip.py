"""The recipe of a CLIP that knows noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unclip_jax.data.tokenizer import TokenizerConfig
from unclip_jax.errors import UserError
from unclip_jax.models.noised_clip import NoisedCLIPConfig
from unclip_jax.training.recipes.run import Run


@dataclass(frozen=True)
class NoisedCLIPRecipe(Run):
    """Train a CLIP on noisy pictures, to steer a decoder by a caption (Nichol et al. 2021, section
    2.4)."""

    model: NoisedCLIPConfig = NoisedCLIPConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """As CLIP's."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """That of the decoder which it is to steer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        clip = self.model.clip
        if clip.context_length != self.tokenizer.context_length:
            raise UserError(
                f"model.clip.context_length {clip.context_length} must equal "
                f"tokenizer.context_length {self.tokenizer.context_length}"
            )
        if clip.vocab_size < self.tokenizer.vocab_size:
            raise UserError(
                f"model.clip.vocab_size {clip.vocab_size} is smaller than tokenizer.vocab_size "
                f"{self.tokenizer.vocab_size}: make them equal"
            )
        if clip.image_size != self.data.image_size:
            raise UserError(
                f"data.image_size {self.data.image_size} must equal model.clip.image_size "
                f"{clip.image_size}"
            )
