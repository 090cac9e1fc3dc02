"""The recipe of a classifier that knows noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unclip_jax.errors import UserError
from unclip_jax.models.classifier import ClassifierConfig
from unclip_jax.training.recipes.run import Run


@dataclass(frozen=True)
class ClassifierRecipe(Run):
    """Train a classifier on noisy pictures, to steer a decoder (Dhariwal & Nichol 2021, section 4).

    Data sets here have captions, no labels: a picture's class is the first of `classes` that its
    caption has as whole words. Pictures without one are not learned from.
    """

    classes: tuple[str, ...] = ()
    """Names of the classes, as captions have them."""
    model: ClassifierConfig = ClassifierConfig()
    num_timesteps: int = 1000
    """Of the forward process."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """That of the decoder which it is to steer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) != self.model.num_classes or len(set(self.classes)) < 2:
            raise UserError(
                f"model.num_classes is {self.model.num_classes} and there are {len(self.classes)} "
                "classes: name each class once, two or more"
            )
        if self.model.encoder.image_size != self.data.image_size:
            raise UserError(
                f"data.image_size {self.data.image_size} must equal model.encoder.image_size "
                f"{self.model.encoder.image_size}"
            )
