"""Where a run's numbers go: metrics.jsonl always, TensorBoard on request, the console."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

from unclip_jax.errors import UserError
from unclip_jax.files import PatientFile, write_whole
from unclip_jax.printable import printable


class MetricWriter:
    """Appends one JSON object a line to RUN/metrics.jsonl.

    Args:
        resume_step: lines after this step are removed: the run is about to write them again.
    Raises:
        UserError: the file cannot be read or written, or there is no TensorBoard to write for.
    """

    def __init__(self, workdir: Path, *, resume_step: int, tensorboard: bool = False) -> None:
        self._path = workdir / "metrics.jsonl"
        self._lines = _open_after(self._path, resume_step)
        self._events = None
        if tensorboard:
            from unclip_jax.training.tensorboard import EventFile

            self._events = EventFile(workdir / "tensorboard")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line; a value that is not finite becomes null."""
        row = {k: (float(v) if math.isfinite(v) else None) for k, v in values.items()}
        self._lines.append(json.dumps({"step": step, **row}).encode() + b"\n")
        if self._events is not None:
            self._events.write(step, values)

    def go_back(self, step: int) -> None:
        """Remove the lines after `step`, which will be written again."""
        self._lines.close()
        self._lines = _open_after(self._path, step)

    def close(self) -> None:
        """What the disk has room for is on it."""
        self._lines.close()
        if self._events is not None:
            self._events.close()


def _open_after(path: Path, step: int) -> PatientFile:
    """metrics.jsonl with its lines up to `step`."""
    try:
        _drop_lines_after(path, step)
    except OSError as error:
        raise UserError(
            f"{path} cannot be continued ({error.strerror}): move it away, or make it readable and "
            "writable, and run the same command again"
        ) from error
    return PatientFile(path)


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    data, kept = path.read_bytes(), []
    for line in data.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.rstrip(b"\n") + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # half a line, from a run that was killed while writing it
    whole = b"".join(kept)
    if data.startswith(whole):
        os.truncate(path, len(whole))  # as always but after damage; a full disk has room for it
    else:
        write_whole(path, whole)


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
