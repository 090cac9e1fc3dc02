"""What the processes of one run agree on, so that none waits for ever for another that has ended.

All of them run the same programs in the same order. A process that stops by itself (a signal, an
unreadable disk) would leave the others inside a collective, so each stops only where all do.
Nothing here costs anything where a process is alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from unclip_jax.data.pipeline import Batch
from unclip_jax.errors import UserError
from unclip_jax.training.sharding import batch_sharding, replicated


def is_first() -> bool:
    """This process writes the run's files and speaks for all."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what may fail on one process only: all leave it, or none. Waits for the slowest.

    Raises:
        UserError: it failed elsewhere.
    """
    failure = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must hear of it
        failure = error
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import process_allgather

        failed = np.flatnonzero(process_allgather(np.array(failure is not None)))
        if failure is None and len(failed):
            raise _elsewhere(int(failed[0]))
    if failure is not None:
        raise failure


def any_process(is_so: bool) -> bool:
    """Whether any process says so; all hear the same. Waits for the slowest."""
    if jax.process_count() == 1:
        return is_so
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.array(is_so))))


def from_first(value: int) -> int:
    """The first process's `value`: a network file system may show others an older folder."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return int(broadcast_one_to_all(np.int32(value)))


class SharedBatches:
    """This process's part of every batch. After a failure it repeats the last part, so that the
    others' steps end: `Agreement` then stops all processes, and none of these steps is kept."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._rows: Batch | None = None
        self.failure: Exception | None = None
        """Why there are no more."""

    def __next__(self) -> Batch:
        if self._rows is None:
            with together():  # nothing to repeat yet
                self._rows = next(self._batches)
            return self._rows
        try:
            if self.failure is None:
                self._rows = next(self._batches)
        except Exception as error:
            if jax.process_count() == 1:
                raise
            self.failure = error
        return self._rows


class Agreement:
    """The signal that ends a run and the failure of a process, heard by all at the same step.

    Every process adds two numbers to each step, of which a program of its own makes the largest of
    all processes. The answer to step n is read when step n + 1 was dispatched, so the devices never
    wait for it. The train step knows nothing of it: `unclip plan` compiles what is run. JAX's own
    `reached_preemption_sync_point` knows no SIGINT and no failures, and takes SIGTERM for itself
    from the start on, when nothing yet listens.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._largest = jax.jit(lambda told: told.max(axis=0), out_shardings=replicated(mesh))
        self._pending: list[Array] = []

    def exchange(
        self, signal_number: int | None, failure: Exception | None, *, now: bool
    ) -> int | None:
        """Once a step: tell the others, and hear what all told at the step before.

        Args:
            signal_number: the signal that this process received.
            failure: what keeps this process from going on.
            now: hear what was told at this step too, and wait for it: nothing that a process
                made after a failure must be saved.
        Returns:
            a signal that some process received, the same on all. One process hears itself at once.
        Raises:
            UserError: another process has failed; or this process's own failure.
        """
        if jax.process_count() == 1:
            if failure is not None:
                raise failure
            return signal_number
        mine = (signal_number or 0, 0 if failure is None else jax.process_index() + 1)
        rows = np.tile(np.array(mine, np.int32), (jax.local_device_count(), 1))
        self._pending.append(self._largest(place_rows({"told": rows}, self._mesh)["told"]))
        heard = np.zeros(2, np.int32)
        while len(self._pending) > (0 if now or heard[0] else 1):  # who stops saves: as `now`
            heard = np.maximum(heard, jax.device_get(self._pending.pop(0)))
        if heard[1]:
            raise failure or _elsewhere(int(heard[1]) - 1)
        return int(heard[0]) or None


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, where `shardings` say; each keeps its own shards."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def shards(leaf: Any, sharding: Any) -> Array:
        whole = jax.device_get(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(shards, tree, shardings)


def place_rows(rows: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """This process's rows of each array as its part of the global one, split over all of `mesh`."""
    # A transfer that is asked for; JAX calls it implicit where there are several processes.
    with jax.transfer_guard("allow"):
        sharding = batch_sharding(mesh)
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in rows.items()
        }


def gather(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays on `mesh` in the first process's memory; None on the others.

    All processes must call it. One array at a time is whole on the devices.
    """
    if mesh.size == 1:
        return tree

    def whole(leaf: Array) -> np.ndarray | None:
        everywhere = jax.block_until_ready(jax.device_put(leaf, replicated(mesh)))
        return jax.device_get(everywhere) if is_first() else None

    found = jax.tree.map(whole, tree)
    return found if is_first() else None


def _elsewhere(process: int) -> UserError:
    return UserError(
        f"process {process} of {jax.process_count()} cannot go on, and so this one stops: mend "
        "what that one says, and run the same command again"
    )
