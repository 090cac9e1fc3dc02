"""The installed DALLE2-pytorch: whether it is there, and how it is made to run with our noise."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.comparison.traced import from_torch, normal, to_torch
from unclip_jax.interop.dalle2_pytorch.era import Version, parse_version


def import_package() -> tuple[Any, Version]:
    """Its main module and its release.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        from dalle2_pytorch import dalle2_pytorch
    # torchvision that was built for another torch fails with RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"DALLE2-pytorch cannot run here ({' '.join(str(error).split())}): pip install "
            "dalle2-pytorch, or give a trace that was recorded elsewhere with --trace"
        ) from error
    return dalle2_pytorch, parse_version(version("dalle2-pytorch"))


def needs_other_release(what: str, wanted: Version | None, installed: Version) -> UserError:
    """For weights that the installed release computes something else with."""
    release = "one of the file's own time" if wanted is None else plain(wanted)
    return UserError(
        f"{what} was written by an older DALLE2-pytorch than the installed {plain(installed)}, "
        f"which computes something else with the same tensors: install {release}, or give a trace "
        "with --trace"
    )


def plain(release: Version) -> str:
    """1.15.6"""
    return ".".join(map(str, release))


def times(x: Any, t: int) -> Any:
    """t for every row of x, [B] long."""
    import torch

    return torch.full((len(x),), t, dtype=torch.long)


def parameters(function: Any) -> set[str]:
    """The names of a class's or function's arguments."""
    return set(inspect.signature(function).parameters)


def fields_of(config: Any) -> dict[str, Any]:
    """A dataclass's fields by name."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON options as arguments: lists as tuples, without those that are null."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }


@contextlib.contextmanager
def given_noise(random: np.random.Generator, draws: list[np.ndarray]) -> Iterator[None]:
    """torch's Gaussians come from `random`, and are kept as they are drawn; pictures NHWC."""
    import torch

    def draw(shape: Any, **_: Any) -> Any:
        axes = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else tuple(shape)
        draws.append(normal(random, *axes))
        return to_torch(draws[-1])

    with (
        mock.patch.object(torch, "randn", draw),
        mock.patch.object(torch, "randn_like", lambda x, **_: draw(x.shape)),
    ):
        yield


@contextlib.contextmanager
def watched(network: Any, states: list[np.ndarray], at: list[int]) -> Iterator[None]:
    """Keeps every x that a sampler gives the network, and its timestep."""
    run = network.forward_with_cond_scale

    def call(x: Any, t: Any, *arguments: Any, **options: Any) -> Any:
        states.append(from_torch(x))
        at.append(int(t[0]))
        return run(x, t, *arguments, **options)

    with mock.patch.object(network, "forward_with_cond_scale", call):
        yield
