"""A trace of some steps, for XProf and TensorBoard."""

from __future__ import annotations

import contextlib
import glob
import socket
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the steps from the first to the last of `steps`, both included.

    What a trace holds names the machine, its devices and the files of the code that ran.

    Args:
        folder: where the trace goes; each module of a network is a scope in it.
        steps: None traces nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        self._folder, self._steps = folder, steps
        self._is_open = False

    def step(self, number: int) -> AbstractContextManager[Any]:
        """Around the dispatch of step `number`."""
        if self._steps is None:
            return contextlib.nullcontext()
        if number == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._is_open = True
        if not self._is_open:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def end(self, number: int, metrics: Any) -> bool:
        """After step `number`; True if the trace was written, with all its steps finished."""
        if not self._is_open or self._steps is None or number < self._steps[1]:
            return False
        jax.block_until_ready(metrics)
        self.close()
        return True

    def close(self) -> None:
        """Write what there is."""
        if self._is_open:
            jax.profiler.stop_trace()
            self._is_open = False
            self._rename()

    def _rename(self) -> None:
        """The profiler calls its files after the machine; ours after the process."""
        machine, own = socket.gethostname(), f"process_{jax.process_index()}"
        for path in self._folder.rglob(f"{glob.escape(machine)}.*"):
            path.rename(path.with_name(own + path.name.removeprefix(machine)))
