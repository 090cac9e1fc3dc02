"""Where every array of a run lives: one mesh and one ordered table of rules on tree paths.

The optimiser's moments and the EMA repeat the parameters' paths, so the same rules place them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unclip_jax.config import MeshConfig
from unclip_jax.errors import UserError

Rule = Literal["fsdp", "zero1"]
# (pattern on the path, what to do). The first match decides, and the last rule matches everything.
RULES: dict[Rule, tuple[tuple[str, str], ...]] = {
    "fsdp": (
        (r"(^|/)(step|count)$", "replicate"),
        (r".*", "shard_largest"),
    ),
    # Rajbhandari et al. 2020, section 5.1: only what the forward pass does not read is sharded.
    "zero1": (
        (r"(^|/)(step|count)$", "replicate"),
        (r"^params/", "replicate"),
        (r".*", "shard_largest"),
    ),
}
SMALLEST_SHARDED = 2**16  # elements: below this, gathering costs more than it saves


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes ('data', 'fsdp') over all devices, fsdp inside a slice.

    Args:
        devices: None takes those that are there; `unclip plan` gives a topology's.
    Raises:
        UserError: the sizes do not multiply to the number of devices, or the devices do not form
            as many slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    data = count // config.fsdp if config.data == -1 else config.data
    if data * config.fsdp != count or data % config.slices:
        within = f" in {config.slices} slices" if config.slices > 1 else ""
        raise UserError(
            f"mesh (data={config.data}, fsdp={config.fsdp}){within} does not fit {count} devices: "
            "make their product the number of devices"
        )
    shape = (data // config.slices, config.fsdp)
    grids = [_grid(shape, group) for group in _slices(devices, config.slices)]
    # Explicit axes, the default of `jax.make_mesh`, reject convolutions with sharded kernels.
    types = (AxisType.Auto, AxisType.Auto)
    return Mesh(np.concatenate(grids), ("data", "fsdp"), axis_types=types)


def _grid(shape: tuple[int, int], devices: list[Any]) -> np.ndarray:
    """Neighbours in the network next to each other, where the devices say where they are."""
    if any(getattr(device, "core_on_chip", 0) for device in devices):  # half chips, in no torus
        return np.array(devices).reshape(shape)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _slices(devices: list[Any], count: int) -> list[list[Any]]:
    """By the slice that a device says it is in, else equal runs of neighbours."""
    if count == 1:
        return [devices]
    numbers = [getattr(device, "slice_index", None) for device in devices]
    found = sorted({number for number in numbers if number is not None})
    if len(found) > 1:
        groups = [[d for d, n in zip(devices, numbers, strict=True) if n == i] for i in found]
    else:
        size = len(devices) // count
        groups = [devices[i : i + size] for i in range(0, len(devices), size)]
    if len(groups) != count or len({len(group) for group in groups}) != 1:
        raise UserError(
            f"mesh.slices is {count}, but the devices form {len(groups)}: give that number"
        )
    return groups


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over both axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def infer_shardings(tree: Any, mesh: Mesh, rule: Rule = "fsdp") -> Any:
    """A sharding for every leaf of `tree` (arrays or their shapes), by `RULES`."""

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        action = next(action for pattern, action in RULES[rule] if re.search(pattern, name))
        if action == "replicate":
            return replicated(mesh)
        return NamedSharding(mesh, _shard_largest(leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, tree)


@dataclass(frozen=True)
class Placement:
    """How the leaves of one part of the state are laid out that are laid out alike."""

    part: str
    """params, ema_params, opt_state or step."""
    spec: PartitionSpec
    leaves: int
    total_bytes: int
    """Of the whole arrays."""
    device_bytes: int
    """Of what one device holds."""


def placements(tree: Any, shardings: Any) -> list[Placement]:
    """A row for each part of `tree` and each way in which its arrays are split."""
    rows: dict[tuple[str, PartitionSpec], list[int]] = {}
    paths = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), sharding in zip(paths, jax.tree.leaves(shardings), strict=True):
        size = leaf.dtype.itemsize
        row = rows.setdefault((path_name(path[:1]), sharding.spec), [0, 0, 0])
        row[0] += 1
        row[1] += math.prod(leaf.shape) * size
        row[2] += math.prod(sharding.shard_shape(leaf.shape)) * size
    return [Placement(*key, *row) for key, row in rows.items()]


def placement_table(rows: Sequence[Placement]) -> str:
    """The rows as text, one a line, sizes in MB."""
    lines = [f"{'part':12} {'split':34} {'arrays':>7} {'MB':>10} {'MB a device':>12}"]
    for row in rows:
        split = str(tuple(row.spec)) if len(row.spec) else "whole on every device"
        lines.append(
            f"{row.part:12} {split:34} {row.leaves:7} {row.total_bytes / 1e6:10.1f} "
            f"{row.device_bytes / 1e6:12.1f}"
        )
    return "\n".join(lines)


def path_name(path: Any) -> str:
    """A tree path as 'params/unet/conv_in/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shard_largest(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """The largest dimension that `parts` divides, over 'fsdp'; nothing for small arrays."""
    if parts == 1 or np.prod(shape, dtype=np.int64) < SMALLEST_SHARDED:
        return PartitionSpec()
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if not divisible:
        return PartitionSpec()
    axis = max(divisible, key=lambda i: shape[i])
    return PartitionSpec(*("fsdp" if i == axis else None for i in range(len(shape))))
