"""What a run says of its steps: metrics, speed, and what share of time and chip they use."""

from __future__ import annotations

import time
from typing import Any

import jax

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.training.goodput import Goodput
from unclip_jax.training.metrics import MetricWriter, Progress
from unclip_jax.training.recipe import Recipe

SPEEDS = ("images_per_second", "step_share", "tflops_per_device", "mfu")
"""What depends on the machine, and not on the run."""


class StepLog:
    """Reads the metrics of a step only after the next one was dispatched: no device waits.

    Args:
        writer: None writes nothing: another process does.
        start: the step that the run continues from.
        flops: operations of the model in a step, over all devices; None does not say.
        peak: operations a second that one device can do; None does not say.
    """

    def __init__(
        self,
        recipe: Recipe,
        writer: MetricWriter | None,
        progress: Progress,
        bad: BadRecords,
        goodput: Goodput,
        start: int,
        *,
        flops: int | None = None,
        peak: float | None = None,
    ) -> None:
        self._recipe, self._writer, self._progress, self._bad = recipe, writer, progress, bad
        self._goodput = goodput
        self._flops, self._peak = flops, peak
        self._pending: tuple[int, Any] | None = None
        self._first = start + 1
        self._began = time.monotonic()
        self._since: tuple[float, int] | None = None  # when and at which step the last line was
        self._aside = 0.0  # seconds that were not spent in steps until then

    def add(self, step: int, metrics: Any) -> None:
        """Take the metrics of `step`; write those of the step before, if they are due."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Write what is pending, waiting for it if need be."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        is_due = step in (1, self._recipe.steps) or step % self._recipe.log.every == 0
        if not is_due and step != self._first:
            return
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        if step == self._first:
            self._progress.say(f"first step after {now - self._began:.0f} s, compilation included")
        if self._since is not None and step > self._since[1]:
            values |= self._speeds(now - self._since[0], step - self._since[1])
        self._since, self._aside = (now, step), self._goodput.aside
        # A resumed run writes the lines of an uninterrupted one, so not its own first step.
        if is_due and self._writer is not None:
            self._writer.write(step, {**values, "skipped_pictures": self._bad.count})
            self._progress.update(step, values)
            self._goodput.write()

    def go_back(self, step: int) -> None:
        """The next step is the one after `step`: what was written of later ones is removed."""
        self._pending = self._since = None
        if self._writer is not None:
            self._writer.go_back(step)

    def _speeds(self, seconds: float, steps: int) -> dict[str, float]:
        speeds = {
            "images_per_second": steps * self._recipe.batch_size / seconds,
            "step_share": max(0.0, 1 - (self._goodput.aside - self._aside) / seconds),
        }
        if self._flops is not None:
            rate = steps * self._flops / seconds / jax.device_count()
            speeds["tflops_per_device"] = rate / 1e12
            if self._peak is not None:
                speeds["mfu"] = rate / self._peak
        return speeds
