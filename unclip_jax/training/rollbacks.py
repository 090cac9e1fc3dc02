"""When a run goes back to a checkpoint, and which data it then leaves out.

RUN/rollbacks.jsonl, a line each: from which step, to which, the batch that comes next, and why. The
batches of steps that follow are counted from there, so a run killed later continues the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from unclip_jax.config import GuardConfig, from_dict
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole

FILE = "rollbacks.jsonl"


class GaveUp(UserError):
    """The run cannot go on by itself: exit code 3."""

    exit_code = 3


@dataclass(frozen=True)
class Rollback:
    """One time that a run went back."""

    step: int
    """The step that it went back from."""
    to: int
    """The step whose state it took."""
    batch: int
    """The batch of step `to` + 1, counted from the beginning of the run's data."""
    reason: str


class Rollbacks:
    """Those of a run folder.

    Args:
        is_first: this process writes the file.
    Raises:
        UserError: the file is not what this class writes.
    """

    def __init__(self, workdir: Path, config: GuardConfig, *, is_first: bool = True) -> None:
        self._path, self._config, self._is_first = workdir / FILE, config, is_first
        self._all: list[Rollback] = []
        if self._path.exists():
            try:
                lines = self._path.read_text(encoding="utf-8").splitlines()
                self._all = [from_dict(Rollback, json.loads(line)) for line in lines]
            except (OSError, ValueError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{self._path} cannot be read ({error}): restore it, or use another --workdir"
                ) from error

    def first_batch(self, step: int) -> int:
        """The batch of step `step` + 1, counted from the beginning of the run's data."""
        last = next((one for one in reversed(self._all) if one.to <= step), None)
        return step if last is None else last.batch + step - last.to

    def begin_at(self, step: int) -> None:
        """Forget what happened after `step`, the one that the run continues from: the checkpoints
        in between were damaged, and the steps that follow are other ones."""
        kept = [one for one in self._all if one.to <= step]
        if len(kept) < len(self._all):
            self._all = kept
            self._write()

    def go_back(self, step: int, to: int, reason: str) -> None:
        """Note that the run goes from `step` back to `to` and leaves out the data between.

        Raises:
            GaveUp: it has gone back to that very step as often as it may.
        """
        times = sum(one.to == to for one in self._all)
        if times >= self._config.rollbacks:
            raise GaveUp(
                f"step {step}: {reason}; the run has gone back to step {to} {times} times and left "
                f"out other data each time, see {self._path}: lower optim.learning_rate, or look "
                "at the data"
            )
        self._all.append(Rollback(step, to, self.first_batch(step), reason))
        self._write()

    def _write(self) -> None:
        if self._is_first:
            lines = "".join(json.dumps(asdict(one)) + "\n" for one in self._all)
            write_whole(self._path, lines.encode())


class SkipWatch:
    """Reads whether steps were skipped only after the next one was dispatched: no device waits.

    Args:
        patience: see `GuardConfig`.
        say: is told of every skipped step.
    """

    def __init__(self, patience: int, say: Callable[[str], None]) -> None:
        self._patience, self._say = patience, say
        self._pending: tuple[int, Any] | None = None
        self.in_a_row = 0
        """Steps skipped up to `step`, since the last that was not."""
        self.step = 0
        """The last step that is known of."""
        self.reason = ""
        """What its loss and gradient were."""

    @property
    def is_out_of_patience(self) -> bool:
        """So many were skipped that the run is to go back."""
        return self.in_a_row >= self._patience

    def add(self, step: int, metrics: dict[str, Any], *, now: bool) -> None:
        """Take a step's metrics; read those of the step before, with `now` its own too."""
        self._flush()
        names = ("skipped_in_a_row", "loss", "gradient_norm")
        self._pending = (step, {name: metrics[name] for name in names})
        if now and not self.is_out_of_patience:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self.step, values = pending[0], jax.device_get(pending[1])
        self.in_a_row = int(values["skipped_in_a_row"])
        if self.in_a_row:
            self.reason = (
                f"{self.in_a_row} steps in a row were skipped, the last with loss "
                f"{values['loss']:.4g} and gradient norm {values['gradient_norm']:.4g}"
            )
            self._say(
                f"step {self.step}: skipped, loss {values['loss']:.4g}, gradient norm "
                f"{values['gradient_norm']:.4g} ({self.in_a_row} in a row)"
            )
