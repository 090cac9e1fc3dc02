"""Where every array of a run lives: one mesh and one ordered table of rules on tree paths.

The optimiser's moments and the EMA repeat the parameters' paths, so the same rules place them.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unclip_jax.config import MeshConfig
from unclip_jax.errors import UserError

# (pattern on the path, what to do). The first match decides, and the last rule matches everything.
RULES: tuple[tuple[str, str], ...] = (
    (r"(^|/)step$", "replicate"),
    (r"(^|/)count$", "replicate"),
    (r".*", "shard_largest"),
)
SMALLEST_SHARDED = 2**16  # elements: below this, gathering costs more than it saves


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh with axes ('data', 'fsdp') over all devices.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    count = jax.device_count()
    data = count // config.fsdp if config.data == -1 else config.data
    if data * config.fsdp != count:
        raise UserError(
            f"mesh (data={config.data}, fsdp={config.fsdp}) does not fit {count} devices: "
            "make their product the number of devices"
        )
    # Explicit axes, the default, reject convolutions with sharded kernels.
    return jax.make_mesh(
        (data, config.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over both axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def infer_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of `tree` (arrays or their shapes), by `RULES`."""

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        rule = next(action for pattern, action in RULES if re.search(pattern, name))
        if rule == "replicate":
            return replicated(mesh)
        return NamedSharding(mesh, _shard_largest(leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, tree)


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
