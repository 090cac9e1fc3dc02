"""A network that is not one of the paper's, as a folder: GLIDE, ADM.

    config.json        {"format": 1, "network": "glide", "source": ..., "config": {...}}
    model.safetensors  float32 or bfloat16, names as in the parameter tree

`load_network` returns a Flax module and its parameters; such a network is called, not sampled by
`sample.py`. Priors and decoders of DALLE2-pytorch are more than one module: their folders are
`dalle2_pytorch.folder`'s, which `load_dalle2` reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import linen as nn

from unclip_jax.bounded import read_json
from unclip_jax.config import Dtype, from_dict, to_dict
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.interop.adm import ADMFormat
from unclip_jax.interop.adm_networks import ADM, ADMConfig
from unclip_jax.interop.glide import glide_shapes
from unclip_jax.interop.glide_networks import Glide, GlideConfig
from unclip_jax.interop.key_map import KeyMap, same
from unclip_jax.interop.safetensors_file import open_safetensors, write_safetensors
from unclip_jax.interop.tensors import Tensors
from unclip_jax.interop.transfer import import_params, read_params
from unclip_jax.models.classifier import Classifier, ClassifierConfig
from unclip_jax.training.weights import flatten

FORMAT = 1
NetworkConfig = ADMConfig | ClassifierConfig | GlideConfig
_KINDS: dict[str, type] = {
    "adm": ADMConfig,
    "adm_classifier": ClassifierConfig,
    "glide": GlideConfig,
}
"""What config.json calls each."""


@dataclass(frozen=True, eq=False)
class ForeignNetwork:
    """A network that was recognised in a file and not read yet."""

    config: NetworkConfig
    key_map: KeyMap
    tensors: Tensors
    what: str
    """How messages call the file."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of names that mean nothing here."""

    def write(self, folder: Path, dtype: Dtype) -> None:
        """The folder described above; UserError, and nothing written, if the file does not fit."""
        abstract = network_shapes(self.config)
        arrays = read_params(
            self.key_map, self.tensors, abstract, what=self.what, ignored=self.ignored
        )
        check_network_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
        shapes = {name: tuple(leaf.shape) for name, leaf in flatten(abstract).items()}
        write_safetensors(folder / "model.safetensors", shapes, arrays, kind)
        data = {
            "format": FORMAT,
            "network": next(name for name, cls in _KINDS.items() if type(self.config) is cls),
            "source": Path(self.what).name,
            "config": to_dict(self.config),
        }
        text = json.dumps(data, indent=1) + "\n"
        write_whole(folder / "config.json", text.encode())


def check_network_folder(folder: Path) -> None:
    """UserError if `folder` has files of something else."""
    entries = folder.iterdir() if folder.is_dir() else ()
    foreign = sorted(
        entry.name for entry in entries if entry.name not in ("config.json", "model.safetensors")
    )
    if foreign:
        raise UserError(f"{folder} holds other files ({foreign[0]}): name a new folder")


def load_network(folder: str | Path) -> tuple[nn.Module, Any]:
    """The module and its float32 parameters, from a folder that `unclip convert` wrote.

    Raises:
        UserError: no such folder, or files that are damaged or do not fit each other.
    """
    path = Path(folder) / "config.json"
    try:
        data = read_json(path)
        kind, version = data["network"], data["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): name a folder that `unclip convert` wrote"
        ) from error
    if str(kind).startswith("dalle2_"):
        raise UserError(
            f"{path} is a {kind}: read it with interop.dalle2_pytorch.folder.load_dalle2"
        )
    if kind not in _KINDS or version != FORMAT:
        raise UserError(f"{path} has a {kind} of format {version}: this version reads {FORMAT}")
    config = from_dict(_KINDS[kind], data.get("config"), f"{path}: ")
    abstract = network_shapes(config)
    key_map = [entry for name in flatten(abstract) for entry in same(name, name)]
    weights = Path(folder) / "model.safetensors"
    params = import_params(key_map, open_safetensors(weights), abstract, what=str(weights))
    return make_network(config), params


def make_network(config: NetworkConfig) -> nn.Module:
    """The Flax module of a config."""
    if isinstance(config, GlideConfig):
        return Glide(config)
    if isinstance(config, ADMConfig):
        return ADM(config)
    return Classifier(config)


def network_shapes(config: NetworkConfig) -> Any:
    """Shapes of its parameters."""
    if isinstance(config, GlideConfig):
        return glide_shapes(config)
    return jax.tree.map(lambda leaf: leaf, ADMFormat(config).abstract())
