"""What a file in `configs/` holds: one frozen dataclass for each stage that can be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from unclip_jax.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    MeshConfig,
    OptimConfig,
    from_dict,
    to_dict,
)
from unclip_jax.data.tokenizer import TokenizerConfig
from unclip_jax.diffusion.process import Prediction, Variance
from unclip_jax.errors import UserError
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process a network was trained for, and what its output means."""

    schedule: Literal["cosine", "linear"] = "cosine"
    num_timesteps: int = 1000
    prediction: Prediction = "eps"
    variance: Variance = "fixed_small"

    def __post_init__(self) -> None:
        if self.num_timesteps < 2:
            raise UserError(f"diffusion.num_timesteps is {self.num_timesteps}: give 2 or more")


@dataclass(frozen=True)
class _Run:
    """What every stage's recipe has."""

    steps: int = 1000
    """Optimiser steps of the whole run."""
    batch_size: int = 64
    """Pictures a step, over all devices and micro-batches."""
    seed: int = 0
    ema_decay: float = 0.9999
    """Of the averaged weights that sampling uses; young averages forget faster, see `state.py`."""
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(
                f"steps is {self.steps} and batch_size {self.batch_size}: give 1 or more of each"
            )
        if self.batch_size % self.optim.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} is not divisible by optim.accumulate "
                f"{self.optim.accumulate}"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}: give 0 up to, not including, 1")


@dataclass(frozen=True)
class CLIPRecipe(_Run):
    """Train CLIP's two encoders (Radford et al. 2021)."""

    model: CLIPConfig = CLIPConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Symmetric cross-entropy (CLIP), or a sigmoid for each pair (SigLIP, Zhai et al. 2023)."""

    def __post_init__(self) -> None:
        super().__post_init__()
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


@dataclass(frozen=True)
class PriorRecipe(_Run):
    """Train the diffusion prior on a frozen CLIP (Ramesh et al. 2022, section 2.2)."""

    clip: str = "emoji"
    """The CLIP it works for: a run folder, an exported folder, or a shipped model's name."""
    model: PriorConfig = PriorConfig()
    diffusion: DiffusionConfig = DiffusionConfig(prediction="x0", variance="fixed_small")
    text_drop: float = 0.1
    """Share of the captions that become the empty one, for classifier-free guidance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("text_drop", self.text_drop)
        if self.diffusion.variance == "learned_range":
            raise UserError("diffusion.variance of a prior is fixed_small or fixed_large")


@dataclass(frozen=True)
class DecoderRecipe(_Run):
    """Train the 64 x 64 decoder on a frozen CLIP (Ramesh et al. 2022, section 2.1)."""

    clip: str = "emoji"
    """The CLIP it works for: a run folder, an exported folder, or a shipped model's name."""
    model: DecoderConfig = DecoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig(prediction="eps", variance="learned_range")
    embedding_drop: float = 0.1
    """Share of the CLIP embeddings that are dropped. The paper says 10 % in section 2.1 and 5 % in
    section 5.1; the two drops are independent here."""
    text_drop: float = 0.5
    """Share of the captions that become the empty one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("embedding_drop", self.embedding_drop)
        _check_share("text_drop", self.text_drop)
        if self.model.unet.in_channels != 3:
            raise UserError(
                f"model.unet.in_channels is {self.model.unet.in_channels}: a 64 x 64 decoder has 3"
            )
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


Recipe = CLIPRecipe | PriorRecipe | DecoderRecipe
STAGES = {"clip": CLIPRecipe, "prior": PriorRecipe, "decoder": DecoderRecipe}


def stage_of(recipe: Recipe) -> str:
    """'clip', 'prior' or 'decoder'."""
    return next(name for name, cls in STAGES.items() if type(recipe) is cls)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain data, with its stage."""
    return {"stage": stage_of(recipe), **to_dict(recipe)}


def recipe_from_json(data: dict[str, Any]) -> Recipe:
    """The inverse of `recipe_to_json`.

    Raises:
        UserError: the stage or a field is unknown, or a value has the wrong type.
    """
    fields = dict(data) if isinstance(data, dict) else {}
    stage = fields.pop("stage", None)
    if not isinstance(stage, str) or stage not in STAGES:
        raise UserError(f"stage is {stage!r} in the config: expected one of {', '.join(STAGES)}")
    return from_dict(STAGES[stage], fields)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}: give a share between 0 and 1")
