"""Through a key map: a file's tensors into a parameter tree, and a parameter tree into tensors.

Everything is checked before anything is read: every parameter has its sources, every tensor of the
file is consumed or ignored by name, every shape fits.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.key_map import Entry, KeyMap
from unclip_jax.interop.tensors import Tensor, Tensors
from unclip_jax.training.sharding import path_name
from unclip_jax.training.weights import flatten

_LISTED = 12
"""Names of one module that a message spells out."""


def import_params(
    key_map: KeyMap,
    tensors: Tensors,
    abstract: Any,
    *,
    what: str,
    ignored: Sequence[str] = (),
) -> Any:
    """A parameter tree of float32 arrays.

    Args:
        tensors: the file.
        abstract: tree of shapes that the module needs, as `jax.eval_shape` returns it.
        what: how a message calls the file.
        ignored: regular expressions of whole names that are in the file and mean nothing here.
    Raises:
        UserError: names or shapes that do not fit, with all of them in its `details`.
    """
    arrays = dict(read_params(key_map, tensors, abstract, what=what, ignored=ignored))
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays.pop(path_name(path)), abstract)


def read_params(
    key_map: KeyMap,
    tensors: Tensors,
    abstract: Any,
    *,
    what: str,
    ignored: Sequence[str] = (),
) -> Iterator[tuple[str, np.ndarray]]:
    """As `import_params`, one parameter at a time: (path, float32 array).

    Names, shapes and dtypes are checked before this returns, and values while it is iterated: one
    that is not finite raises UserError.
    """
    expected = {name: leaf.shape for name, leaf in flatten(abstract).items()}
    check_tensors(key_map, tensors, expected, what=what, ignored=ignored)

    def read(entry: Entry) -> np.ndarray:
        sources = (_as_float32(name, tensors[name], what) for name in entry.sources)
        return np.asarray(entry.layout.read(sources), order="C")

    return ((entry.target, read(entry)) for entry in key_map)


def export_tensors(key_map: KeyMap, params: Any) -> Tensors:
    """The foreign file's tensors from our tree, each made when it is read."""
    leaves = flatten(params)
    tensors: Tensors = {}
    for entry in key_map:
        leaf = np.asarray(leaves[entry.target])
        for number, (name, part) in enumerate(
            zip(entry.sources, entry.layout.write(leaf), strict=True)
        ):
            tensors[name] = Tensor(part.shape, part.dtype, _writer(entry, leaf, number))
    return tensors


def check_tensors(
    key_map: KeyMap,
    tensors: Tensors,
    expected: dict[str, tuple[int, ...]],
    *,
    what: str,
    ignored: Sequence[str] = (),
) -> None:
    """UserError unless file, map and parameters agree; its `details` list what does not.

    Args:
        expected: shape of every parameter by path.
    """
    targets = {entry.target for entry in key_map}
    if len(targets) != len(key_map) or targets != set(expected):
        odd = sorted(targets ^ set(expected))
        raise AssertionError(f"the key map of {what} does not fill the parameters: {odd[:5]}")
    wanted = {name for entry in key_map for name in entry.sources}
    unread = {name for name in tensors if not _is_ignored(name, ignored)}
    missing, surplus = sorted(wanted - set(tensors)), sorted(unread - wanted)
    misshapen = [
        line
        for entry in key_map
        if not set(entry.sources) - set(tensors)
        if (line := _shape_fault(entry, tensors, expected[entry.target]))
    ]
    mistyped = [
        f"{name} is {tensors[name].dtype}"
        for name in sorted(wanted & set(tensors))
        if not _is_floating(tensors[name].dtype)
    ]
    if not (missing or surplus or misshapen or mistyped):
        return
    details = [
        *_listed("missing", missing, set(surplus)),
        *_listed("surplus", surplus, set(missing)),
        *(f"misshapen: {line}" for line in misshapen),
        *(f"of no floating type, as if quantised: {line}" for line in mistyped),
    ]
    counts = (
        (missing, "missing"),
        (surplus, "surplus"),
        (misshapen, "misshapen"),
        (mistyped, "of no floating type"),
    )
    error = UserError(
        f"{what} does not fit: "
        + ", ".join(f"{len(names)} {kind}" for names, kind in counts if names)
        + f" of {len(wanted)} tensors ({details[0]}); nothing was loaded, check the format and its "
        "options"
    )
    error.details = details
    raise error


def _listed(kind: str, names: list[str], others: set[str]) -> list[str]:
    """One line a module, with the nearest match among the names that were left over."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name in names:
        modules[name.rpartition(".")[0]].append(name.rpartition(".")[2])
    lines = []
    for module, leaves in modules.items():
        shown = ", ".join(leaves[:_LISTED]) + (" ..." if len(leaves) > _LISTED else "")
        near = difflib.get_close_matches(f"{module}.{leaves[0]}", others, 1, 0.6)
        where = module or "(top)"
        lines.append(f"{kind}: {where}: {shown}" + (f" (nearest: {near[0]})" if near else ""))
    return lines


def _shape_fault(entry: Entry, tensors: Tensors, expected: tuple[int, ...]) -> str | None:
    shapes = [tensors[name].shape for name in entry.sources]
    names = entry.sources[0] + (f" and {len(shapes) - 1} more" if len(shapes) > 1 else "")
    try:
        found = entry.layout.shape(shapes)
    except (ValueError, IndexError) as error:
        return f"{names} has shape {shapes[0]} ({error})"
    if tuple(found) != tuple(expected):
        return f"{names} has shape {shapes[0]}: {entry.target} would be {found}, not {expected}"
    return None


def _is_ignored(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _is_floating(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))  # bfloat16 and float8 too


def _as_float32(name: str, tensor: Tensor, what: str) -> np.ndarray:
    array = np.asarray(tensor.read(), np.float32)
    if not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise UserError(
            f"{what}: {name} has {count} values of {array.size} that are not finite: take another "
            "copy of the file"
        )
    return array


def _writer(entry: Entry, leaf: np.ndarray, number: int) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(entry.layout.write(leaf)[number], order="C")
