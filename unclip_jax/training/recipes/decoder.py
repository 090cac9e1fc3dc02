"""The 64 x 64 decoder's recipe."""

from __future__ import annotations

from dataclasses import dataclass

from unclip_jax.errors import UserError
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.training.masks import MaskConfig
from unclip_jax.training.recipes.run import DiffusionConfig, Run, check_share


@dataclass(frozen=True)
class DecoderRecipe(Run):
    """Train the 64 x 64 decoder on a frozen CLIP (Ramesh et al. 2022, section 2.1)."""

    clip: str = "emoji"
    """The CLIP it works for: a run folder, an exported folder, or a shipped model's name. A decoder
    without embeddings takes the tokenizer alone from it."""
    model: DecoderConfig = DecoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig(prediction="eps", variance="learned_range")
    embedding_drop: float = 0.1
    """Share of the CLIP embeddings that are dropped. The paper says 10 % in section 2.1 and 5 % in
    section 5.1; the two drops are independent here."""
    text_drop: float = 0.5
    """Share of the captions that become the empty one."""
    masks: MaskConfig = MaskConfig()
    """What is erased of a training picture; read where model.is_inpainting is set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("embedding_drop", self.embedding_drop)
        check_share("text_drop", self.text_drop)
        channels = 2 * 3 if self.diffusion.variance == "learned_range" else 3
        if self.model.unet.out_channels != channels:
            raise UserError(
                f"model.unet.out_channels is {self.model.unet.out_channels}: variance "
                f"{self.diffusion.variance!r} needs {channels}"
            )
        if self.model.unet.image_size != self.data.image_size:
            raise UserError(
                f"data.image_size {self.data.image_size} must equal model.unet.image_size "
                f"{self.model.unet.image_size}"
            )
