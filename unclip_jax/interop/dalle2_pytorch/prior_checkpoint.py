"""Where in a file of DALLE2-pytorch the prior is.

A file is a prior's state dict, a network's, that of a whole DALLE2 (`prior.net...`), a tracker's
{version, config, model}, or a trainer's dump {model, ema, ema_model, optimizer, ...}, nested or
with its keys joined by dots. Every copy of the network is found by its learned query; the averaged
one is preferred.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.schedule import TABLES
from unclip_jax.interop.tensors import Tensor, Tensors, from_arrays, without_prefix

Weights = Literal["ema", "online"]

_MARK = "learned_query"
_NETWORK = "net."
_SCHEDULE = "noise_scheduler."
_OTHERS = ("clip.",)
"""Modules beside the network that are no part of the prior: the CLIP it was trained with."""


@dataclass(frozen=True)
class PriorFile:
    """The parts of one prior."""

    network: Tensors
    """Names without 'net.'."""
    schedule: Tensors
    """The noise schedule's tables; none in a network's own state dict."""
    weights: Weights
    """Which copy was taken; 'online' also where there is only one, without a name."""
    place: str
    """Where in the file it was: 'ema_model', or 'the top'."""
    version: str | None
    """Of the package that wrote the file, where it says so."""
    config: Mapping[str, Any] | None
    """As stored in the file, where it is."""


def read_prior_file(
    checkpoint: Mapping[str, Any], weights: Weights | None = None, *, what: str = "the checkpoint"
) -> PriorFile:
    """The prior in a file.

    Args:
        checkpoint: of `Tensor`s or arrays, nested or flat; everything else in it is passed over.
        weights: which copy to take; None takes the averaged one where there is one.
        what: how a message calls the file.
    Raises:
        UserError: no prior, no such copy, or tensors beside it that belong to nothing.
    """
    tensors = dict(_flat(checkpoint))
    roots = [name.removesuffix(_MARK) for name in tensors if f".{name}".endswith(f".{_MARK}")]
    copies = {"ema": [], "online": []}
    for root in roots:
        copies["ema" if _is_average(root) else "online"].append(root)
    kind: Weights = weights or ("ema" if copies["ema"] else "online")
    if not roots:
        raise UserError(
            f"{what} holds no prior of DALLE2-pytorch (no tensor {_MARK}): check which file this is"
        )
    if not copies[kind]:
        held = "averaged" if kind == "online" else "online"
        raise UserError(f"{what} holds only {held} weights, not the {kind} ones: take those")
    # A trainer stores the average twice, once within the averaging module and once by itself.
    inside = min(copies[kind], key=len)
    root = inside.removesuffix(_NETWORK) if f".{inside}".endswith(f".{_NETWORK}") else inside
    place = root.rstrip(".") or "the top"
    if root == inside:  # a network's own state dict
        return PriorFile(without_prefix(tensors, root), {}, kind, place, *_records(checkpoint))
    prior = without_prefix(tensors, root)
    network = without_prefix(prior, _NETWORK)
    # Before 0.11 the tables stood at the top; such priors are refused later, for what they compute.
    schedule = without_prefix(prior, _SCHEDULE) or {n: prior[n] for n in TABLES if n in prior}
    surplus = [
        name
        for name in prior
        if not name.startswith((_NETWORK, _SCHEDULE, *_OTHERS)) and name not in schedule
    ]
    if surplus and (root or not _is_dump(checkpoint)):
        raise UserError(
            f"{what} holds {len(surplus)} tensors beside the prior at {place} that belong to "
            f"nothing known ({surplus[0]}): nothing was loaded, check which file this is"
        )
    return PriorFile(network, schedule, kind, place, *_records(checkpoint))


def _flat(checkpoint: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in checkpoint.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, np.ndarray):
            yield from from_arrays({name: value}).items()
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")


def _is_average(root: str) -> bool:
    parts = [part for part in root.removesuffix(_NETWORK).split(".") if part not in ("", "module")]
    return bool(parts) and parts[-1] == "ema_model"


def _is_dump(checkpoint: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in checkpoint.values())


def _records(checkpoint: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any] | None]:
    """Version and config, as stored."""
    version, config = checkpoint.get("version"), checkpoint.get("config")
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as error:
            raise UserError(
                f"the config in the file is no JSON ({error}): give it as a file of its own"
            ) from error
    is_version = isinstance(version, str) or type(version).__name__ == "Version"
    return str(version) if is_version else None, config if isinstance(config, Mapping) else None
