"""train(): a recipe and a folder in, a trained stage in that folder out. Run again, it continues.

RUN/config.json       the resolved recipe, and which CLIP it was trained for
RUN/tokenizer.json    how captions become tokens
RUN/checkpoints/STEP  the state
RUN/metrics.jsonl     one object a line
RUN/samples/          previews
RUN/skipped.jsonl     pictures that could not be read; skipped.P.jsonl those that process P found
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import Array

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.errors import UserError
from unclip_jax.training.checkpoint import Checkpoints
from unclip_jax.training.inputs import Inputs, open_batches, open_inputs
from unclip_jax.training.metrics import MetricWriter, Progress
from unclip_jax.training.planning.chips import peak_flops
from unclip_jax.training.planning.work import step_flops
from unclip_jax.training.processes import (
    Agreement,
    SharedBatches,
    from_first,
    gather,
    is_first,
    place_rows,
    together,
)
from unclip_jax.training.profile import Profile
from unclip_jax.training.program import Program, make_program
from unclip_jax.training.recipe import Recipe, recipe_to_json
from unclip_jax.training.run_folder import write_description
from unclip_jax.training.sharding import (
    make_mesh,
    placement_table,
    placements,
    replicated,
)
from unclip_jax.training.state import TrainState
from unclip_jax.training.step_log import StepLog
from unclip_jax.training.weights import Stage

Preview = Callable[[Stage, Path], None]
"""(the stage with its averaged weights, RUN/samples/step_N.png) → writes that picture."""


def train(recipe: Recipe, workdir: Path, preview: Preview | None = None) -> tuple[int, int | None]:
    """Train until `recipe.steps`, from the newest checkpoint if there is one.

    The processes of `jax.distributed` train as one: the first writes the files and speaks, all
    save their shards, and a signal to one of them stops all at the same step.

    Args:
        preview: draws samples every `log.preview_every` steps, on the first process; given to all.
    Returns:
        the step that was reached, and the signal (SIGTERM or SIGINT) that ended the run before
        `recipe.steps`, or None; the state is saved either way.
    Raises:
        UserError: the recipe, the data or the folder's contents do not fit together, or another
            process cannot go on.
    """
    with together():
        inputs = open_inputs(recipe, workdir)
        program = make_program(recipe, inputs, make_mesh(recipe.mesh))
    with together():
        if is_first():
            write_description(recipe, workdir, inputs.tokenizer, inputs.clip_id)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir, keep=recipe.checkpoint.keep)
        start = from_first(checkpoints.latest_step() or 0)
        if start >= recipe.steps:
            checkpoints.close()
            if is_first():
                print(f"{workdir} has all its {start} steps; give more --steps to go on")
            return start, None
        progress = stack.enter_context(
            contextlib.closing(Progress(start, recipe.steps, is_silent=not is_first()))
        )
        run = _Run(recipe, workdir, inputs, program, checkpoints, progress, preview)
        step, stopped_by = run.go(start, stack)
        checkpoints.wait()
        progress.say(f"step {step}: saved in {workdir / 'checkpoints' / str(step)}")
    return step, stopped_by


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    workdir: Path
    inputs: Inputs
    program: Program
    checkpoints: Checkpoints
    progress: Progress
    preview: Preview | None

    def go(self, start: int, stack: contextlib.ExitStack) -> tuple[int, int | None]:
        """From step `start` on; the step that was reached, and the signal that ended the run."""
        recipe, mesh = self.recipe, self.program.mesh
        state, step_key = self._begin(start)
        stack.callback(self.checkpoints.close)  # not after a failed restore, which Orbax still ends
        bad = BadRecords(
            self.workdir / "skipped.jsonl",
            recipe.data.max_bad_fraction,
            process_index=jax.process_index(),
        )
        batches = SharedBatches(open_batches(recipe, self.inputs, bad, start))
        self._announce()
        frozen = self.program.place_frozen()
        with together():
            log = self._open_log(bad, start, stack)
        profile = Profile(self.workdir / "profile", recipe.log.profile_steps)
        stack.callback(profile.close)
        agreement = Agreement(mesh)
        step, stopped_by = start, None
        with _stop_requests() as stop:
            while step < recipe.steps and stopped_by is None:
                step += 1
                is_last = step == recipe.steps
                is_saved = is_last or step % recipe.checkpoint.every == 0
                is_drawn = self.preview is not None and (is_last or _is_due(step, recipe))
                with log.aside():
                    rows = next(batches)
                with jax.transfer_guard("disallow"), jax.set_mesh(mesh):
                    batch = place_rows(rows, mesh)
                    with profile.step(step):
                        state, metrics = self.program.step(state, frozen, batch, step_key)
                    stopped_by = agreement.exchange(
                        stop(), batches.failure, now=is_saved or is_drawn
                    )
                    log.add(step, metrics)
                    if profile.end(step, metrics):
                        folder = self.workdir / "profile"
                        self.progress.say(f"profile of steps up to {step} in {folder}")
                with log.aside():
                    if is_saved or stopped_by is not None:
                        self.checkpoints.save(step, state, recipe_to_json(recipe))
                    if is_drawn:
                        self._draw(step, state)
        log.flush()
        return step, stopped_by

    def _begin(self, start: int) -> tuple[TrainState, Array]:
        """The state of step `start`, and the key of all steps."""

        def split() -> tuple[Array, Array]:
            init_key, step_key = jax.random.split(jax.random.key(self.recipe.seed))
            return init_key, step_key

        init_key, step_key = jax.jit(split, out_shardings=replicated(self.program.mesh))()
        if not start:
            return self.program.init(init_key), step_key
        state = self.checkpoints.restore(start, self.program.abstract_state)
        self.progress.say(f"continuing {self.workdir} at step {start}")
        return state, step_key

    def _announce(self) -> None:
        abstract, mesh = self.program.abstract_state, self.program.mesh
        parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
        self.progress.say(
            f"{parameters:,} parameters, {len(self.inputs):,} pictures, {mesh.size} device(s); "
            "compiling the step ..."
        )
        if mesh.size > 1:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            self.progress.say(placement_table(placements(abstract, shardings)))

    def _open_log(self, bad: BadRecords, start: int, stack: contextlib.ExitStack) -> StepLog:
        recipe, writer = self.recipe, None
        if is_first():
            opened = MetricWriter(
                self.workdir, resume_step=start, tensorboard=recipe.log.tensorboard
            )
            writer = stack.enter_context(contextlib.closing(opened))
        peak = peak_flops(jax.devices()[0].device_kind)
        flops = None
        if peak is not None:
            with contextlib.suppress(UserError):  # what cannot be counted can be trained
                flops = step_flops(recipe, self.inputs)
        return StepLog(recipe, writer, self.progress, bad, start, flops=flops, peak=peak)

    def _draw(self, step: int, state: TrainState) -> None:
        """Gather the average, which all processes hold together, and draw with it on the first."""
        average = gather(state.ema_params, self.program.mesh)
        with together():
            if self.preview is None or not is_first():
                return
            inputs, path = self.inputs, self.workdir / "samples" / f"step_{step:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            clip_id = inputs.clip_id or ""
            stage = Stage(self.recipe, average, inputs.tokenizer, step, clip_id, inputs.codes)
            self.preview(stage, path)
            self.progress.say(f"samples in {path}")


def _is_due(step: int, recipe: Recipe) -> bool:
    return bool(recipe.log.preview_every) and step % recipe.log.preview_every == 0


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], int | None]]:
    """The SIGTERM or SIGINT that came, if any; a second one acts as it would without us."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def handler(number: int, frame: Any) -> None:
        received.append(number)
        for known, action in previous.items():
            signal.signal(known, action)

    with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handler)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
