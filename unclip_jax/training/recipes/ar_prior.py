"""The autoregressive prior's recipe."""

from __future__ import annotations

from dataclasses import dataclass

from unclip_jax.errors import UserError
from unclip_jax.models.ar_prior import ARPriorConfig
from unclip_jax.models.embedding_codes import CodeConfig
from unclip_jax.training.recipes.run import Run, check_share


@dataclass(frozen=True)
class ARPriorRecipe(Run):
    """Train the autoregressive prior on a frozen CLIP (Ramesh et al. 2022, section 2.2)."""

    clip: str = "emoji"
    """The CLIP it works for: a run folder, an exported folder, or a shipped model's name."""
    model: ARPriorConfig = ARPriorConfig()
    codes: str | None = None
    """File of `unclip fit-codes`; None fits them on the training data when the run begins."""
    fit: CodeConfig = CodeConfig(components=319)
    """How codes are fitted where `codes` is None; as many components as the model has."""
    text_drop: float = 0.1
    """Share of the rows that lose caption, text embedding and dot product together, for
    classifier-free guidance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("text_drop", self.text_drop)
        pairs = {
            "components": (self.fit.components, self.model.components),
            "buckets": (self.fit.buckets, self.model.buckets),
            "dot_buckets": (self.fit.dot_buckets, self.model.dot_buckets),
        }
        for name, (fitted, modelled) in pairs.items():
            if self.codes is None and fitted != modelled:
                raise UserError(f"fit.{name} {fitted} must equal model.{name} {modelled}")
