"""What a DALLE2-pytorch decoder is made of, read from `decoder_config.json` or from its file.

The original builds every U-Net anew with what its place in the cascade demands: the first one is
given the image embedding, the others the low-resolution image, and a learned variance doubles the
channels. The same is applied here to the JSON, whatever its U-Nets say about these options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unclip_jax.bounded import read_json
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.schedule import (
    NoiseSchedule,
    NoiseScheduleName,
    make_noise_schedule,
)
from unclip_jax.interop.dalle2_pytorch.unet_config import UnetConfig, unet_config
from unclip_jax.interop.dalle2_pytorch.unet_era import CURRENT_ERA, UnetEra

Prediction = Literal["epsilon", "x0", "velocity"]
LossType = Literal["l1", "l2", "huber"]
LOWRES_NOISE_STEPS = 1000
"""Of the linear schedule that noises the low-resolution image."""

_DEAD = frozenset({"clip", "clip_denoised", "clip_x_start", "clip_adapter_overrides"})
"""Read nowhere, or about the CLIP that only turned images into embeddings."""


@dataclass(frozen=True)
class DecoderStage:
    """One diffusion of the cascade."""

    unet: UnetConfig
    image_size: int
    beta_schedule: NoiseScheduleName = "cosine"
    sample_timesteps: int | None = None
    """Fewer than `timesteps`: sampled by DDIM."""
    prediction: Prediction = "epsilon"
    learned_variance: bool = False
    p2_loss_weight_gamma: float = 0.0
    random_crop_size: int | None = None
    """Side of the square that the loss is computed on."""
    use_blur: bool = False
    """Blur the low-resolution image in training."""
    use_noise: bool = False
    """Noise it, in training and in sampling, and tell the U-Net how much."""


@dataclass(frozen=True)
class DecoderConfig:
    """A cascade. Images are in [-1, 1] inside; outside in [0, 1] if `auto_normalize_img` is set."""

    stages: tuple[DecoderStage, ...]
    timesteps: int = 1000
    channels: int = 3
    loss_type: LossType = "l2"
    p2_loss_weight_k: float = 1.0
    vb_loss_weight: float = 0.001
    learned_variance_constrain_frac: bool = False
    image_cond_drop_prob: float = 0.1
    text_cond_drop_prob: float = 0.5
    unconditional: bool = False
    auto_normalize_img: bool = True
    ddim_sampling_eta: float = 0.0
    use_dynamic_thres: bool = False
    dynamic_thres_percentile: float = 0.95
    lowres_downsample_first: bool = True
    lowres_noise_sample_level: float = 0.2
    blur_prob: float = 0.5
    blur_sigma: float | tuple[float, float] = 0.6
    """One, or a range to draw from; so is the next."""
    blur_kernel_size: int | tuple[int, int] = 3

    def __post_init__(self) -> None:
        sizes = [stage.image_size for stage in self.stages]
        if not sizes or sizes != sorted(set(sizes)):
            raise _fault(f"image sizes {sizes} must grow from stage to stage")
        if self.loss_type not in ("l1", "l2", "huber"):
            raise _fault(f"loss_type {self.loss_type!r} is none of l1, l2, huber")
        for i, stage in enumerate(self.stages):
            count = stage.sample_timesteps
            if count is not None and not 1 <= count <= self.timesteps:
                raise _fault(f"sample_timesteps {count} of stage {i + 1}: 1 to {self.timesteps}")
            if i and not (stage.use_blur or stage.use_noise):
                raise _fault(f"stage {i + 1} has neither use_blur_for_lowres_cond nor use_noise_")
            if i == 0 and (stage.use_blur or stage.use_noise or stage.random_crop_size):
                raise _fault("the first stage has no low-resolution image to blur, noise or crop")

    @property
    def image_range(self) -> tuple[float, float]:
        """Of images outside."""
        return (0.0, 1.0) if self.auto_normalize_img else (-1.0, 1.0)

    @property
    def cond_on_text_encodings(self) -> bool:
        """Some stage is given the text."""
        return any(stage.unet.cond_on_text_encodings for stage in self.stages)

    def schedule(self, stage: int) -> NoiseSchedule:
        """The noise levels of a stage, counted from 0."""
        one = self.stages[stage]
        return make_noise_schedule(
            one.beta_schedule,
            self.timesteps,
            p2_gamma=one.p2_loss_weight_gamma,
            p2_k=self.p2_loss_weight_k,
        )


def lowres_noise_schedule() -> NoiseSchedule:
    """The levels at which a low-resolution image is noised (Saharia et al. 2022)."""
    return make_noise_schedule("linear", LOWRES_NOISE_STEPS)


def load_decoder_config(path: Path, era: UnetEra = CURRENT_ERA) -> DecoderConfig:
    """A `decoder_config.json`."""
    try:
        entry = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a decoder_config.json") from error
    return decoder_config(entry, era)


def decoder_config(entry: Any, era: UnetEra = CURRENT_ERA) -> DecoderConfig:
    """From the JSON of a training run, whose part `decoder` it is, or from that part.

    Raises:
        UserError: an option that no release had, or values that do not fit together.
    """
    if not isinstance(entry, Mapping):
        raise _fault("it is no JSON object")
    part = entry.get("decoder", entry)
    if not isinstance(part, Mapping):
        raise _fault("its `decoder` is no JSON object")
    entry = dict(part)
    if not isinstance(entry.get("unets"), (list, tuple)) or not entry["unets"]:
        raise _fault("it has no `unets`")
    values = {key: value for key, value in entry.items() if value is not None and key not in _DEAD}
    try:
        config = _parsed(values, era)
    except (TypeError, KeyError, AttributeError) as error:
        raise _fault(f"a value has the wrong type ({error})") from error
    if values:
        raise _fault(f"the option {min(values)!r} is unknown")
    return config


def _parsed(values: dict[str, Any], era: UnetEra) -> DecoderConfig:
    """Takes what it knows out of `values`."""
    unets = [unet_config(unet, era) for unet in values.pop("unets")]
    count = len(unets)
    if values.pop("vae", None) or values.pop("predict_x_start_for_latent_diffusion", False):
        raise _fault("a stage with a VAE (latent diffusion) cannot be imported")
    sizes = _image_sizes(values)
    if len(sizes) != count:
        raise _fault(f"{count} U-Nets and {len(sizes)} image sizes")
    default_schedule = ["cosine"] * max(1, count - 1) + ["linear"] * (count > 1)
    rows = {
        "image_size": sizes,
        "beta_schedule": _each(values, "beta_schedule", count, default_schedule),
        "sample_timesteps": _each(values, "sample_timesteps", count, None),
        "learned_variance": _padded(values, "learned_variance", count, True),
        "p2_loss_weight_gamma": _each(values, "p2_loss_weight_gamma", count, 0.0),
        "random_crop_size": _each(values, "random_crop_sizes", count, None),
        "use_blur": _upsamplers(values, "use_blur_for_lowres_cond", count, True),
        "use_noise": _upsamplers(values, "use_noise_for_lowres_cond", count, False),
        "prediction": [
            "velocity" if velocity else "x0" if start else "epsilon"
            for velocity, start in zip(
                _each(values, "predict_v", count, False),
                _each(values, "predict_x_start", count, False),
                strict=True,
            )
        ],
    }
    shared: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in DecoderConfig.__dataclass_fields__
        if name != "stages" and (value := values.pop(name, None)) is not None
    }
    channels, unconditional = shared.get("channels", 3), shared.get("unconditional", False)
    stages = []
    for i, unet in enumerate(unets):
        row = {name: column[i] for name, column in rows.items()}
        unet = replace(
            unet,
            channels=channels,
            channels_out=channels * (2 if row["learned_variance"] else 1),
            lowres_cond=i > 0,
            lowres_noise_cond=row["use_noise"],
            cond_on_image_embeds=i == 0 and not unconditional,
            cond_on_text_encodings=unet.cond_on_text_encodings and not unconditional,
        )
        stages.append(DecoderStage(unet, **row))
    return DecoderConfig(tuple(stages), **shared)


def _image_sizes(values: dict[str, Any]) -> list[int]:
    one, several = values.pop("image_size", None), values.pop("image_sizes", None)
    if (one is None) == (several is None):
        raise _fault("give one of image_size and image_sizes")
    return sorted(set(several)) if several is not None else [one]


def _each(values: dict[str, Any], name: str, count: int, default: Any) -> list[Any]:
    """One value for every stage, or one each."""
    value = values.pop(name, default)
    value = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(value) != count:
        raise _fault(f"{name} has {len(value)} entries for {count} U-Nets")
    return value


def _padded(values: dict[str, Any], name: str, count: int, default: bool) -> list[bool]:
    """Of the first stages; the others have False."""
    value = values.pop(name, default)
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(value) > count:
        raise _fault(f"{name} has {len(value)} entries for {count} U-Nets")
    return value + [False] * (count - len(value))


def _upsamplers(values: dict[str, Any], name: str, count: int, default: bool) -> list[bool]:
    """Of every stage but the first, which may be named too and then has False."""
    value = values.pop(name, default)
    value = list(value) if isinstance(value, (list, tuple)) else [value] * (count - 1)
    if len(value) not in (count - 1, count):
        raise _fault(f"{name} has {len(value)} entries for {count - 1} upsamplers")
    return [False] * (count - len(value)) + value


def _fault(reason: str) -> UserError:
    return UserError(f"decoder config: {reason}; give the config that the file was trained with")
