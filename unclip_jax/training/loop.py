"""train(): a recipe and a folder in, a trained stage in that folder out. Run again, it continues.

RUN/config.json       the resolved recipe, and which CLIP it was trained for
RUN/tokenizer.json    how captions become tokens
RUN/checkpoints/STEP  the state
RUN/metrics.jsonl     one object a line
RUN/samples/          previews
RUN/goodput.json      where the time went
RUN/rollbacks.jsonl   when the run went back to a checkpoint, and what data it left out
RUN/lock              held while a run uses the folder
RUN/skipped.jsonl     pictures that could not be read; skipped.P.jsonl those that process P found
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
from jax import Array

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.errors import UserError
from unclip_jax.training.checkpoint import Checkpoints, newest_step
from unclip_jax.training.comparing import Comparing
from unclip_jax.training.goodput import Goodput
from unclip_jax.training.guard import running_loss
from unclip_jax.training.initial_weights import start_from
from unclip_jax.training.inputs import Inputs, open_batches, open_inputs
from unclip_jax.training.late_writes import ignore_late_writes
from unclip_jax.training.metrics import MetricWriter, Progress
from unclip_jax.training.planning.chips import peak_flops
from unclip_jax.training.planning.work import step_flops
from unclip_jax.training.preview_thread import draw_aside
from unclip_jax.training.processes import (
    Agreement,
    SharedBatches,
    any_process,
    from_first,
    gather,
    is_first,
    place_rows,
    together,
)
from unclip_jax.training.profile import Profile
from unclip_jax.training.program import Program, make_program
from unclip_jax.training.recipe import Recipe, recipe_to_json
from unclip_jax.training.rollbacks import Rollbacks, SkipWatch
from unclip_jax.training.run_folder import write_description
from unclip_jax.training.run_lock import RunLock
from unclip_jax.training.sharding import (
    make_mesh,
    placement_table,
    placements,
    replicated,
)
from unclip_jax.training.state import TrainState
from unclip_jax.training.step_log import StepLog
from unclip_jax.training.stop_requests import StopRequests
from unclip_jax.training.weights import Stage, without_places

Preview = Callable[[Stage, Path], None]
"""(the stage with its averaged weights, RUN/samples/step_N.png) → writes that picture."""


def train(recipe: Recipe, workdir: Path, preview: Preview | None = None) -> tuple[int, int | None]:
    """Train until `recipe.steps`, from the newest good checkpoint if there is one.

    The processes of `jax.distributed` train as one: the first writes the files and speaks, all
    save their shards, and a signal to one of them stops all at the same step.

    Args:
        preview: draws samples every `log.preview_every` steps, on the first process; given to all.
    Returns:
        the step that was reached, and the signal (SIGTERM or SIGINT) that ended the run before
        `recipe.steps`, or None; the state is saved either way. A second signal
        ends the process with 128 + its number, as does one before the first step of this call,
        unless there are other processes.
    Raises:
        GaveUp: steps were skipped again and again, see `GuardConfig`.
        UserError: the recipe, the data or the folder's contents do not fit together, another run
            uses the folder, or another process cannot go on.
    """
    began = time.monotonic()
    ignore_late_writes()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequests())
        if jax.process_count() > 1:  # one that ended before the first step would be waited for
            stop.listen()
        with together():
            comparing = Comparing(workdir)
            bad = BadRecords(
                workdir / "skipped.jsonl",
                recipe.data.max_bad_fraction,
                process_index=jax.process_index(),
            )
            inputs = open_inputs(recipe, workdir, bad)
            program = make_program(recipe, inputs, make_mesh(recipe.mesh))
        with together():
            lock = stack.enter_context(RunLock(workdir)) if is_first() else None
            if is_first():
                write_description(recipe, workdir, inputs.tokenizer, inputs.clip_id)
            saved = from_first(newest_step(workdir) or 0)
        if saved >= recipe.steps and not any_process(comparing.wait() is not None):
            if is_first():
                print(f"{workdir} has all its {saved} steps; give more --steps to go on")
            return saved, None
        with together():
            checkpoints = Checkpoints(
                workdir,
                recipe.checkpoint,
                program.abstract_state,
                is_first=is_first(),
                comparing=comparing,
            )
            rollbacks = Rollbacks(workdir, recipe.guard, is_first=is_first())
        progress = stack.enter_context(
            contextlib.closing(Progress(saved, recipe.steps, is_silent=not is_first()))
        )
        run = _Run(
            *(recipe, workdir, inputs, bad, program),
            *(checkpoints, rollbacks, progress, lock, preview),
        )
        step, stopped_by = run.go(stop, began, stack)
        checkpoints.wait(must_succeed=True)
        progress.say(f"step {step}: saved in {workdir / 'checkpoints' / str(step)}")
    return step, stopped_by


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    workdir: Path
    inputs: Inputs
    bad: BadRecords
    program: Program
    checkpoints: Checkpoints
    rollbacks: Rollbacks
    progress: Progress
    lock: RunLock | None
    preview: Preview | None

    def go(
        self, stop: StopRequests, began: float, stack: contextlib.ExitStack
    ) -> tuple[int, int | None]:
        """From the newest checkpoint on; the step reached, and the signal that ended it."""
        recipe, mesh = self.recipe, self.program.mesh
        step_key, state, step = self._begin()
        with together():
            self.rollbacks.begin_at(step)
        stack.callback(self.checkpoints.close)  # not after a failed restore, which Orbax still ends
        goodput = Goodput(self.workdir if is_first() else None, step, began)
        batches = self._open_batches(step)
        self._announce()
        frozen = self.program.place_frozen()
        with together():
            log = self._open_log(goodput, step, stack)
        profile = Profile(self.workdir / "profile", recipe.log.profile_steps)
        stack.callback(profile.close)
        agreement, watch = Agreement(mesh), self._new_watch()
        stopped_by, is_due, is_first_step = None, False, True
        while step < recipe.steps and stopped_by is None:
            step += 1
            is_last = step == recipe.steps
            is_due |= is_last or step % recipe.checkpoint.every == 0
            is_drawn = self.preview is not None and (is_last or _is_preview_due(step, recipe))
            with goodput.span("input"):
                rows = next(batches)
            with jax.transfer_guard("disallow"), jax.set_mesh(mesh):
                batch = place_rows(rows, mesh)
                compiling = goodput.span("compile") if is_first_step else contextlib.nullcontext()
                with profile.step(step), compiling:
                    state, metrics = self.program.step(state, frozen, batch, step_key)
                is_first_step = False
                stop.listen()
                goodput.reached(step)
                stopped_by = agreement.exchange(
                    stop.received,
                    batches.failure or self.checkpoints.failure(),
                    now=is_due or is_drawn,
                )
                watch.add(step, metrics, now=is_due or stopped_by is not None)
                log.add(step, metrics)
                if profile.end(step, metrics):
                    folder = self.workdir / "profile"
                    self.progress.say(f"profile of steps up to {step} in {folder}")
            if watch.is_out_of_patience:
                with goodput.span("recover"):
                    state, step = self._go_back(watch, state)
                    batches, watch = self._open_batches(step), self._new_watch()
                    log.go_back(step)
                goodput.go_back(step)
                stopped_by, is_due = None, False
                continue
            # The state of a run of skipped steps is that before them: what it goes back to.
            is_saved = (is_due and not watch.in_a_row) or is_last or stopped_by is not None
            if is_saved:
                is_due = False
                self._save(step, state, goodput)
            if is_drawn and stopped_by is None:
                stopped_by = self._show(step, state, stop, agreement, goodput, is_saved)
        log.flush()
        goodput.write()
        self.progress.say(f"time: {goodput.summary()}")
        return step, stopped_by

    def _new_watch(self) -> SkipWatch:
        return SkipWatch(self.recipe.guard.patience, self.progress.say)

    def _begin(self) -> tuple[Array, TrainState, int]:
        """The key of all steps, the newest good state or a new one, and its step."""

        def split() -> tuple[Array, Array]:
            init_key, step_key = jax.random.split(jax.random.key(self.recipe.seed))
            return init_key, step_key

        init_key, step_key = jax.jit(split, out_shardings=replicated(self.program.mesh))()
        state = self.checkpoints.restore_newest(self.program.abstract_state)
        if state is None:
            return step_key, start_from(self.recipe, self.program.init(init_key)), 0
        step = int(jax.device_get(state.step))
        self.progress.say(f"continuing {self.workdir} at step {step}")
        return step_key, state, step

    def _open_batches(self, step: int) -> SharedBatches:
        """Those of the steps after `step`."""
        first = self.rollbacks.first_batch(step)
        return SharedBatches(open_batches(self.recipe, self.inputs, self.bad, first))

    def _go_back(self, watch: SkipWatch, state: TrainState) -> tuple[TrainState, int]:
        """The newest good state, or a new one, after too many skipped steps."""
        with together():
            self.checkpoints.wait()
        jax.tree.map(lambda leaf: leaf.delete(), state)  # two need not fit
        _, state, step = self._begin()
        self.rollbacks.go_back(watch.step, step, watch.reason)
        self.progress.say(
            f"step {watch.step}: {watch.reason}; back to step {step}, without the data since then"
        )
        return state, step

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

    def _open_log(self, goodput: Goodput, start: int, stack: contextlib.ExitStack) -> StepLog:
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
        return StepLog(
            recipe, writer, self.progress, self.bad, goodput, start, flops=flops, peak=peak
        )

    def _save(self, step: int, state: TrainState, goodput: Goodput) -> None:
        with goodput.span("save"):
            with together():
                if self.lock is not None:
                    self.lock.keep()
            loss = float(running_loss(jax.device_get(state.guard)))
            # Checkpoints are passed on, and nothing of where the data lay helps to open one.
            described = without_places(recipe_to_json(self.recipe))
            self.checkpoints.save(step, state, described, loss)

    def _show(
        self,
        step: int,
        state: TrainState,
        stop: StopRequests,
        agreement: Agreement,
        goodput: Goodput,
        is_saved: bool,
    ) -> int | None:
        """Draw; the signal that came meanwhile. The state is saved if one did, or if that fails."""
        goes_on = False
        try:
            with goodput.span("preview"):
                self._draw(step, state, stop)
            stopped_by = agreement.exchange(stop.received, None, now=True)
            goes_on = stopped_by is None
            return stopped_by
        finally:
            if not (goes_on or is_saved):
                self._save(step, state, goodput)

    def _draw(self, step: int, state: TrainState, stop: StopRequests) -> None:
        """Gather the average, which all processes hold together, and draw with it on the first."""
        average = gather(state.ema_params, self.program.mesh)
        with together():
            preview = self.preview
            if preview is None or not is_first():
                return
            inputs, path = self.inputs, self.workdir / "samples" / f"step_{step:07d}.png"
            clip_id = inputs.clip_id or ""
            stage = Stage(self.recipe, average, inputs.tokenizer, step, clip_id, inputs.codes)
            must_write = self.recipe.checkpoint.on_disk_full == "stop"
            said = draw_aside(lambda path: preview(stage, path), path, stop, must_write=must_write)
            self.progress.say(said)


def _is_preview_due(step: int, recipe: Recipe) -> bool:
    return bool(recipe.log.preview_every) and step % recipe.log.preview_every == 0
