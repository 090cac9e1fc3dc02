"""A decoder's checkpoint: its U-Nets, the tables beside them, and the way back.

What a file holds besides the U-Nets is dealt with by name. The tables of the noise schedules are
compared with those of the config and dropped, since they are computed from it. The CLIP that
turned images into embeddings (`clip.*`) is ignored. A VAE (`vaes.*`) is refused: its stage works on
latents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.decoder_config import (
    DecoderConfig,
    decoder_config,
    lowres_noise_schedule,
)
from unclip_jax.interop.dalle2_pytorch.schedule import NoiseSchedule, matching_schedule
from unclip_jax.interop.dalle2_pytorch.unet import abstract_params
from unclip_jax.interop.dalle2_pytorch.unet_config import UnetConfig
from unclip_jax.interop.dalle2_pytorch.unet_era import CURRENT_ERA, unet_era
from unclip_jax.interop.dalle2_pytorch.unet_keys import IGNORED, unet_key_map
from unclip_jax.interop.tensors import Tensors, from_arrays, without_prefix
from unclip_jax.interop.transfer import export_tensors, import_params

_KNOWN = re.compile(r"(unets|noise_schedulers|lowres_conds)\.(\d+)\..*|clip\..*|steps")


@dataclass(frozen=True, eq=False)
class Decoder:
    """A cascade with its weights."""

    config: DecoderConfig
    params: tuple[Any, ...]
    """One parameter tree a stage, of `unet.Unet(config.stages[i].unet)`."""


def import_decoder(
    tensors: Tensors,
    entry: Mapping[str, Any],
    *,
    recorded: str | None = None,
    version: str | None = None,
    what: str = "the decoder",
) -> Decoder:
    """A decoder's state dict.

    Args:
        tensors: the file's, with the names of `Decoder.state_dict()`.
        entry: its config, as JSON: of the training run, or of the decoder alone.
        recorded: the version that stands in the file.
        version: the version that the user names, or legacy or current.
        what: how a message calls the file.
    Raises:
        UserError: an era that is unknown or contradicted, or tensors that the config does not fit.
    """
    _check_names(tensors, what)
    config = decoder_config(entry)
    stages, params = [], []
    for i, stage in enumerate(config.stages):
        part = without_prefix(tensors, f"unets.{i}.")
        name = f"U-Net {i + 1} of {what}"
        if not part:
            raise UserError(f"{name} is not in the file: give a config with the file's U-Nets")
        unet = unet_of(stage.unet, part, recorded=recorded, named=version, what=name)
        params.append(import_unet(part, unet, what=name))
        stages.append(replace(stage, unet=unet))
    config = replace(config, stages=tuple(stages))
    _check_tables(tensors, config, what)
    return Decoder(config, tuple(params))


def unet_of(
    config: UnetConfig,
    tensors: Tensors,
    *,
    recorded: str | None = None,
    named: str | None = None,
    what: str = "the U-Net",
) -> UnetConfig:
    """The config with what only the tensors tell: the era, and what the last convolution is given.

    Args:
        tensors: of one U-Net, without the prefix `unets.<i>.`.
        recorded, named: versions, as for `unet_era.unet_era`.
    """
    era = unet_era(tensors, recorded=recorded, named=named, what=what)
    last = tensors.get("to_out.weight")
    given = last is None or len(last.shape) != 4 or last.shape[1] != config.dim
    return replace(config, era=era, lowres_in_last_conv=given)


def import_unet(tensors: Tensors, config: UnetConfig, *, what: str = "the U-Net") -> Any:
    """The parameters of one U-Net from its tensors, without the prefix `unets.<i>.`."""
    ignored = IGNORED if config.era.gamma_norms else ()
    return import_params(
        unet_key_map(config), tensors, abstract_params(config), what=what, ignored=ignored
    )


def export_decoder(decoder: Decoder) -> Tensors:
    """The state dict that the current package loads with strict=True, in float32.

    Raises:
        UserError: weights that the current package would compute something else with.
    """
    tensors: Tensors = {}
    for i, (stage, params) in enumerate(zip(decoder.config.stages, decoder.params, strict=True)):
        if replace(stage.unet.era, wrapped_cross_attention=False) != CURRENT_ERA:
            raise UserError(
                f"U-Net {i + 1} is of a version before 1.10, which computed something else with "
                "the same tensors: it cannot be exported to the current one"
            )
        current = replace(stage.unet, era=CURRENT_ERA)
        exported = export_tensors(unet_key_map(current), params)
        tensors |= {f"unets.{i}.{name}": tensor for name, tensor in exported.items()}
    for prefix, schedule in _schedules(decoder.config).items():
        tensors |= from_arrays({prefix + k: v for k, v in schedule.buffers().items()})
    return tensors


def with_averages(model: Tensors, averages: Tensors) -> Tensors:
    """A trainer's decoder with the moving averages of its U-Nets in the place of their weights.

    Args:
        model: what a trainer's dump has under `model`.
        averages: what it has under `ema`, named `<i>.ema_model.*`.
    Raises:
        UserError: averages of other U-Nets.
    """
    found = {
        f"unets.{match[1]}.{match[2]}": tensor
        for name, tensor in averages.items()
        if (match := re.fullmatch(r"(\d+)\.ema_model\.(.*)", name))
    }
    unets = {name for name in model if name.startswith("unets.")}
    if set(found) != unets:
        odd = min(set(found) ^ unets)
        raise UserError(f"the averages and the model differ in {odd}: take the model without them")
    return {**model, **found}


def _check_names(tensors: Tensors, what: str) -> None:
    latent = [name for name in tensors if name.startswith("vaes.")]
    if latent:
        raise UserError(
            f"{what} has a VAE ({latent[0]}): latent diffusion cannot be imported, import_unet "
            "reads one of its U-Nets"
        )
    unknown = [name for name in tensors if not _KNOWN.fullmatch(name)]
    if unknown:
        raise UserError(
            f"{what} holds {len(unknown)} tensors that no decoder has ({unknown[0]}): give the "
            "state dict of a Decoder"
        )


def _schedules(config: DecoderConfig) -> dict[str, NoiseSchedule]:
    """By the prefix of their tables."""
    found = {f"noise_schedulers.{i}.": config.schedule(i) for i in range(len(config.stages))}
    for i, stage in enumerate(config.stages):
        if stage.use_noise:
            found[f"lowres_conds.{i}.noise_scheduler."] = lowres_noise_schedule()
    return found


def _check_tables(tensors: Tensors, config: DecoderConfig, what: str) -> None:
    """The schedules that are in the file must be the config's; older files may lack some."""
    expected = _schedules(config)
    others = [
        name
        for name in tensors
        if name.startswith(("noise_schedulers.", "lowres_conds."))
        and not name.startswith(tuple(expected))
    ] + [
        name
        for name in tensors
        if name.startswith("unets.") and int(name.split(".")[1]) >= len(config.stages)
    ]
    if others:
        raise UserError(
            f"{what} holds {others[0]}, which its config has no stage for: give the config "
            "that the file was trained with"
        )
    for prefix, schedule in expected.items():
        tables = {name: tensor.read() for name, tensor in without_prefix(tensors, prefix).items()}
        if not tables:
            continue
        found = matching_schedule(tables, p2_k=config.p2_loss_weight_k, what=what)
        same_chain = found.name == schedule.name and found.timesteps == schedule.timesteps
        if not same_chain or not np.allclose(
            found.p2_loss_weight, schedule.p2_loss_weight, rtol=1e-4, atol=1e-12
        ):
            raise UserError(
                f"{what}: {prefix}betas are the {found.name} schedule of {found.timesteps} steps "
                f"and the config says {schedule.name} of {schedule.timesteps} (or another p2 "
                "weight): give the config that the file was trained with"
            )
