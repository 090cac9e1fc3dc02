"""What the tests of importers share: frozen runs, quick compilation, errors row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unclip_jax.interop.key_map import KeyMap
from unclip_jax.interop.tensors import Tensors, from_arrays
from unclip_jax.interop.transfer import export_tensors
from unclip_jax.training.weights import flatten

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5


class Frozen:
    """A run of the original code: its state dict, its inputs and its outputs (pictures NCHW)."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as file:
            self._arrays = dict(file)

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        start = f"w/{prefix}"
        return {k.removeprefix(start): v for k, v in self._arrays.items() if k.startswith(start)}

    def tensors(self, prefix: str = "") -> Tensors:
        return from_arrays(self.arrays(prefix))

    def __getitem__(self, name: str) -> np.ndarray:
        """'in/...' or 'out/...', four axes as NHWC."""
        array = self._arrays[name]
        return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def run(function: Callable, *args: Any) -> Any:
    """`function(*args)` compiled without optimisation, which takes a third of the time."""
    return quick(function, *args)(*args)


def quick(function: Callable, *args: Any) -> Callable:
    """`function` compiled for arguments like these."""
    options: Any = {"xla_backend_optimization_level": 0}
    with jax.default_matmul_precision("highest"):
        return jax.jit(function).lower(*args).compile(compiler_options=options)


def error(found: Any, expected: Any) -> float:
    """The largest relative error of a row, by norms."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    rows = zip(found, expected, strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in rows)


def random_params(abstract: Any, seed: int = 0) -> Any:
    """A tree of numbers in the given shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), abstract)


def hollow_tensors(key_map: KeyMap, abstract: Any) -> Tensors:
    """A file of the right names and shapes that holds zeros, of any size in little memory."""
    zero = np.int8(0)
    hollow = jax.tree_util.tree_map(lambda leaf: np.broadcast_to(zero, leaf.shape), abstract)
    return export_tensors(key_map, hollow)


def contents(tensors: Tensors) -> dict[str, np.ndarray]:
    """Every array of a file."""
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same_trees(found: Any, expected: Any) -> None:
    """Equal to the last bit."""
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_same_files(found: Tensors, expected: dict[str, np.ndarray]) -> None:
    """Equal to the last bit, names included."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].read(), array, err_msg=name)
