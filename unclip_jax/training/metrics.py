"""Where a run's numbers go: metrics.jsonl always, TensorBoard on request, the console."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.printable import printable


class MetricWriter:
    """Appends one JSON object a line to RUN/metrics.jsonl.

    Args:
        resume_step: lines after this step are removed: the run is about to write them again.
    """

    def __init__(self, workdir: Path, *, resume_step: int, tensorboard: bool = False) -> None:
        self._path = workdir / "metrics.jsonl"
        _drop_lines_after(self._path, resume_step)
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""  # for room on a full disk
        self._tensorboard: Any = None
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                raise UserError(
                    "log.tensorboard needs tensorboardX: pip install 'unclip_jax[track]'"
                ) from None
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line; a value that is not finite becomes null."""
        row = {k: (float(v) if math.isfinite(v) else None) for k, v in values.items()}
        self._waiting += json.dumps({"step": step, **row}).encode() + b"\n"
        self._write_waiting()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def go_back(self, step: int) -> None:
        """Remove the lines after `step`, which will be written again."""
        self._waiting = b""
        self._file.close()
        _drop_lines_after(self._path, step)
        self._file = self._path.open("ab", buffering=0)

    def _write_waiting(self) -> None:
        # A full disk is for the checkpoints to tell: whether it ends the run is a field of theirs.
        with contextlib.suppress(OSError):
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Flush everything to disk."""
        self._write_waiting()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # half a line, from a run that was killed while writing it
    write_whole(path, b"".join(kept))


class Progress:
    """One line that moves on a terminal, plain lines elsewhere, both on standard error.

    Args:
        is_silent: say nothing: another process speaks.
    """

    def __init__(self, start: int, steps: int, *, is_silent: bool = False) -> None:
        self._steps, self._bar, self._is_silent = steps, None, is_silent
        if sys.stderr.isatty() and not is_silent:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=steps, completed=start)
        self._began = (time.monotonic(), start)

    def say(self, text: str) -> None:
        """A line of its own, or several."""
        text = "\n".join(printable(line, None) for line in text.split("\n"))
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif not self._is_silent:
            print(text, file=sys.stderr, flush=True)

    def update(self, step: int, values: dict[str, float]) -> None:
        """Loss and speed at `step`."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        began, start = self._began
        left = (time.monotonic() - began) / max(1, step - start) * (self._steps - step)
        self.say(f"step {step}/{self._steps}  {text}  {left / 60:.1f} min left")

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
