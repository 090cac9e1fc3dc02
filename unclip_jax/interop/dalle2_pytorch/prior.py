"""DALLE2-pytorch's diffusion prior: from its checkpoint to parameters here, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.bounded import read_json
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.era import Version, resolve_version, semantics_of
from unclip_jax.interop.dalle2_pytorch.prior_checkpoint import (
    PriorFile,
    Weights,
    read_prior_file,
)
from unclip_jax.interop.dalle2_pytorch.prior_config import (
    PriorConfig,
    PriorNetworkConfig,
    check_objects,
    infer_network,
    read_config,
)
from unclip_jax.interop.dalle2_pytorch.prior_keys import ROTARY, prior_key_map
from unclip_jax.interop.dalle2_pytorch.prior_network import PriorNetwork, rotary_frequencies
from unclip_jax.interop.dalle2_pytorch.schedule import (
    NoiseSchedule,
    make_noise_schedule,
    matching_schedule,
)
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import read_all
from unclip_jax.interop.transfer import export_tensors, import_params

_DEFAULT_TIMESTEPS = 1000
_CONFIGS = ("prior_config.json", "config.json")
"""What config files beside weights are called."""


@dataclass(frozen=True, eq=False)
class ImportedPrior:
    """A prior with its weights."""

    config: PriorConfig
    schedule: NoiseSchedule
    params: Any
    """Of `network`, float32."""
    version: Version
    """The version of DALLE2-pytorch whose maths it has."""
    weights: Weights
    """Which copy of the weights the file held these as."""
    place: str
    """Where in the file they were."""
    has_config: bool = True
    """Whether a config said what no tensor tells: the objective, clamps, the scale."""

    @property
    def network(self) -> PriorNetwork:
        """The module that `params` belong to."""
        return PriorNetwork(self.config.net)


def abstract_params(config: PriorNetworkConfig) -> Any:
    """Shapes of the network's parameters."""
    row = jax.ShapeDtypeStruct((1, config.dim), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(PriorNetwork(config).init, jax.random.key(0), row, t, row)["params"]


def import_prior(
    checkpoint: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    era: str | None = None,
    weights: Weights | None = None,
    what: str = "the checkpoint",
) -> ImportedPrior:
    """A prior from what its file holds.

    Args:
        checkpoint: a state dict, or a trainer's or a tracker's dump; see `read_prior_file`.
        config: of the file beside it; None takes the one inside, or what the tensors say.
        era: version of the package, 'legacy' or 'current'; needed for files of 0.23 to 1.8.
        weights: 'ema' or 'online'; None prefers 'ema'.
        what: how a message calls the file.
    Raises:
        UserError: an unknown or contradicted era, a config of another prior, or tensors that do
            not fit.
    """
    file = read_prior_file(checkpoint, weights, what=what)
    version = resolve_version(file.network, file.version, era, what)
    shapes = {name: tensor.shape for name, tensor in file.network.items()}
    found = infer_network(shapes, semantics_of(version))
    options = file.config if config is None else config
    if options is not None:
        check_objects(options, what)
    schedule = _schedule(file, found, options, what)
    full = read_config(options, found, timesteps=schedule.timesteps, beta_schedule=schedule.name)
    _check_rotary(file, full.net, what)
    params = import_params(
        prior_key_map(full.net),
        file.network,
        abstract_params(full.net),
        what=what,
        ignored=[ROTARY],
    )
    origin = (version, file.weights, file.place, options is not None)
    return ImportedPrior(full, schedule, params, *origin)


def open_prior(
    path: Path,
    config: Path | None = None,
    *,
    era: str | None = None,
    weights: Weights | None = None,
) -> ImportedPrior:
    """A prior from its file, or from a folder with one file of weights.

    Args:
        config: its JSON file; by default `prior_config.json` or `config.json` beside the weights.
        era, weights: see `import_prior`.
    Raises:
        UserError: also a file that cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    beside = [folder / name for name in _CONFIGS if (folder / name).is_file()]
    if config is None and beside:
        config = beside[0]
    options = None
    if config is not None:
        try:
            options = read_json(config)
        except (OSError, ValueError) as error:
            raise UserError(f"{config} cannot be read ({error}): give the prior's JSON") from error
    return import_prior(open_file(path).tree, options, era=era, weights=weights, what=str(path))


def export_prior(prior: ImportedPrior) -> dict[str, np.ndarray]:
    """The state dict that a `DiffusionPrior` of the prior's own version loads, without CLIP.

    Every tensor equals the imported one, the noise schedule's tables included.
    """
    c = prior.config.net
    key_map = prior_key_map(c)
    arrays = dict(read_all(export_tensors(key_map, prior.params)))
    if c.rotary_emb:
        rates = rotary_frequencies(c.dim_head)
        for layer in range(c.depth):
            arrays[f"causal_transformer.layers.{layer}.0.rotary_emb.freqs"] = rates
    return {
        **{f"noise_scheduler.{name}": table for name, table in prior.schedule.buffers().items()},
        **{f"net.{name}": array for name, array in arrays.items()},
    }


def _schedule(
    file: PriorFile, found: PriorNetworkConfig, options: Mapping[str, Any] | None, what: str
) -> NoiseSchedule:
    if file.schedule:
        tables = {name: tensor.read() for name, tensor in file.schedule.items()}
        return matching_schedule(tables, what=what)
    # A network by itself: the config tells, or the rows of its time embedding.
    stated = (options or {}).get("prior", options or {})
    timesteps = stated.get("timesteps") or found.num_timesteps or _DEFAULT_TIMESTEPS
    return make_noise_schedule(stated.get("beta_schedule") or "cosine", timesteps)


def _check_rotary(file: PriorFile, config: PriorNetworkConfig, what: str) -> None:
    """The one frequency table that the network here can compute is in the file, in every layer."""
    rates = rotary_frequencies(config.dim_head)
    for layer in range(config.depth if config.rotary_emb else 0):
        name = f"causal_transformer.layers.{layer}.0.rotary_emb.freqs"
        if name not in file.network:
            raise UserError(f"{what} lacks {name}, which its first layer has: restore the file")
        stored = np.asarray(file.network[name].read(), np.float32)
        if stored.shape != rates.shape or not np.allclose(stored, rates, rtol=1e-2, atol=1e-4):
            raise UserError(
                f"{name} of {what} are not the frequencies of a rotation with theta 10000: such a "
                "prior is not supported"
            )
