"""Functions of rows on every device of this host, in padded micro-batches of one size.

A device computes its own rows with the program of one device (`jax.shard_map`), so neither the
number of devices nor the other rows change a bit of a row. Hosts work on rows of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Rows = dict[str, Any]
"""Arrays [B, ...] by name; `is_real` [B] bool is False where a row is padding."""


@dataclass(frozen=True)
class RowProgram:
    """A pure function of rows, and the stages whose weights it reads."""

    name: str
    """Of the stage, for people."""
    key: Hashable
    """Names what is computed: programs with equal keys, and rows of equal shapes, are the same."""
    stages: tuple[str, ...]
    run: Callable[[dict[str, Any], Rows], Any]
    """({stage: parameters}, rows) → [B, ...], or several by name; row i depends on row i alone."""


class RowRunner:
    """Compiles and runs row programs on all local devices.

    Args:
        params: the stages' parameters, on the host or on a device.
        compiled: what was compiled before, shared between models of the same networks.
    """

    def __init__(self, params: Mapping[str, Any], compiled: dict[Any, Any]) -> None:
        devices = np.array(jax.local_devices())
        self.mesh = Mesh(devices, ("rows",), axis_types=(AxisType.Auto,))
        self.compile_seconds = 0.0
        self.on_compile: Callable[[str, float | None], None] = lambda name, seconds: None
        """Told a program's name before it is compiled, with None, and after, with the seconds."""
        self._params, self._compiled = params, compiled
        self._placed: dict[str, Any] = {}

    def start(self, program: RowProgram, rows: Rows) -> Any:
        """Begin a micro-batch; the result is there when the devices have computed it.

        Args:
            rows: [devices * b, ...], on the host or results of this runner.
        Returns:
            [devices * b, ...], or several by name, split over the devices.
        """
        split = NamedSharding(self.mesh, PartitionSpec("rows"))
        rows = jax.device_put(rows, split)
        params = self._place(program.stages)
        shapes = tuple((name, x.shape, x.dtype) for name, x in sorted(rows.items()))
        key = (program.key, shapes, self.mesh)
        if key not in self._compiled:
            self.on_compile(program.name, None)
            began = time.monotonic()
            lowered = trace_rows(program, self.mesh, params, rows).lower()
            self._compiled[key] = lowered.compile()
            seconds = time.monotonic() - began
            self.compile_seconds += seconds
            self.on_compile(program.name, seconds)
        return self._compiled[key](params, rows)

    def run(self, program: RowProgram, rows: Rows, size: int) -> np.ndarray:
        """Any number of rows, `size` a device at a time.

        Args:
            rows: [N, ...], on the host.
        Returns:
            [N, ...].
        """
        parts = []
        for part, count in micro_batches(rows, size * self.mesh.size):
            parts.append(self.start(program, part)[:count])
        return np.concatenate([np.asarray(part) for part in parts])

    def keep_only(self, stages: tuple[str, ...]) -> None:
        """Take the weights of all other stages off the devices."""
        for name in set(self._placed) - set(stages):
            del self._placed[name]

    def _place(self, stages: tuple[str, ...]) -> dict[str, Any]:
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        for name in stages:
            if name not in self._placed:
                self._placed[name] = jax.device_put(self._params[name], everywhere)
        return {name: self._placed[name] for name in stages}


def trace_rows(program: RowProgram, mesh: Mesh, params: Any, rows: Rows) -> Any:
    """The program of one device for its part of `rows`, on all devices of `mesh`, to be lowered.

    Args:
        params, rows: arrays, or their shapes with shardings.
    """
    split = PartitionSpec(mesh.axis_names)
    local = jax.shard_map(
        program.run, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
    )
    return jax.jit(local).trace(params, rows)


def micro_batches(rows: Rows, size: int) -> Iterator[tuple[Rows, int]]:
    """Slices of `size` rows with `is_real`, the last filled up with copies of its first row, and
    how many rows of each are real."""
    total = len(next(iter(rows.values())))
    for start in range(0, total, size):
        count = min(size, total - start)
        numbers = np.concatenate([np.arange(start, start + count), np.full(size - count, start)])
        part = {name: array[numbers] for name, array in rows.items()}
        yield {**part, "is_real": np.arange(size) < count}, count


def run_in_groups(run: Callable[[Rows], Array], rows: Rows, size: int) -> Array:
    """`run` over `size` rows at a time, for what a whole micro-batch has no memory for.

    A group of padding alone is left out, and its rows are zeros.

    Args:
        rows: [B, ...] arrays with `is_real`.
    """
    total = rows["is_real"].shape[0]
    size = min(size, total)
    count = -(-total // size)
    missing = count * size - total

    def split(array: Array) -> Array:
        full = jnp.concatenate([array, array[:missing]])
        return full.reshape(count, size, *array.shape[1:])

    groups = {name: split(array) for name, array in rows.items()}
    shape = jax.eval_shape(run, {name: array[0] for name, array in groups.items()})

    def body(_: None, group: Rows) -> tuple[None, Array]:
        is_real = jnp.any(group["is_real"])
        return None, jax.lax.cond(
            is_real, run, lambda _: jnp.zeros(shape.shape, shape.dtype), group
        )

    _, found = jax.lax.scan(body, None, groups)
    return found.reshape(count * size, *shape.shape[1:])[:total]
