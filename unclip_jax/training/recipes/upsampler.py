"""The upsamplers' recipe."""

from __future__ import annotations

from dataclasses import dataclass

from unclip_jax.config import DataConfig
from unclip_jax.errors import UserError
from unclip_jax.models.upsampler import FACTOR, UpsamplerConfig
from unclip_jax.training.degradations.low_resolution import DegradationConfig
from unclip_jax.training.masks import MaskConfig
from unclip_jax.training.recipes.run import DiffusionConfig, Run


@dataclass(frozen=True)
class UpsamplerRecipe(Run):
    """Train an upsampler to `data.image_size` from a quarter of it (Ramesh et al. 2022, section
    2.1). It reads no caption and needs no CLIP."""

    data: DataConfig = DataConfig(image_size=256)
    model: UpsamplerConfig = UpsamplerConfig()
    diffusion: DiffusionConfig = DiffusionConfig(prediction="eps", variance="learned_range")
    degradation: DegradationConfig = DegradationConfig()
    """What is done to the small picture."""
    masks: MaskConfig = MaskConfig()
    """What is erased of the large picture; read where model.is_inpainting is set."""
    crop_fraction: float = 0.25
    """Side of the training crop, as a share of the picture's; 1 trains on whole pictures."""
    crops: int = 1
    """Random crops of each picture. Reading a picture of 1024 × 1024 costs more than a small
    network's step on a crop of it; the paper, at its size, has no need of more than one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop_fraction <= 1:
            raise UserError(f"crop_fraction is {self.crop_fraction}: give a share above 0 up to 1")
        if self.crops < 1:
            raise UserError(f"crops is {self.crops}: give 1 or more a picture")
        size = self.data.image_size
        if self.model.unet.image_size != size:
            raise UserError(
                f"data.image_size {size} must equal model.unet.image_size "
                f"{self.model.unet.image_size}"
            )
        needed = max(FACTOR, self.model.multiple)
        if self.crop_size % needed or self.crop_size != size * self.crop_fraction:
            raise UserError(
                f"crops of {size * self.crop_fraction:g} pixels are not a multiple of {needed}: "
                "change crop_fraction or data.image_size"
            )
        channels = 2 * 3 if self.diffusion.variance == "learned_range" else 3
        if self.model.unet.out_channels != channels:
            raise UserError(
                f"model.unet.out_channels is {self.model.unet.out_channels}: variance "
                f"{self.diffusion.variance!r} needs {channels}"
            )

    @property
    def crop_size(self) -> int:
        """Side of the training crop in pixels."""
        return int(self.data.image_size * self.crop_fraction)
