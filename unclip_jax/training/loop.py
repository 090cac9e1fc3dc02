"""train(): a recipe and a folder in, a trained stage in that folder out. Run again, it continues.

RUN/config.json       the resolved recipe, and which CLIP it was trained for
RUN/tokenizer.json    how captions become tokens
RUN/checkpoints/STEP  the state
RUN/metrics.jsonl     one object a line
RUN/samples/          previews
RUN/skipped.jsonl     pictures that could not be read
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.errors import UserError
from unclip_jax.training.checkpoint import Checkpoints
from unclip_jax.training.inputs import open_batches, open_inputs
from unclip_jax.training.metrics import MetricWriter, Progress
from unclip_jax.training.planning.chips import peak_flops
from unclip_jax.training.planning.work import step_flops
from unclip_jax.training.profile import Profile
from unclip_jax.training.program import make_program
from unclip_jax.training.recipe import Recipe, recipe_to_json
from unclip_jax.training.run_folder import write_description
from unclip_jax.training.sharding import (
    batch_sharding,
    make_mesh,
    placement_table,
    placements,
)
from unclip_jax.training.step_log import StepLog
from unclip_jax.training.weights import Stage

Preview = Callable[[Stage, Path], None]
"""(the stage with its averaged weights, RUN/samples/step_N.png) → writes that picture."""


def train(recipe: Recipe, workdir: Path, preview: Preview | None = None) -> tuple[int, int | None]:
    """Train until `recipe.steps`, from the newest checkpoint if there is one.

    Args:
        preview: draws samples every `log.preview_every` steps.
    Returns:
        the step that was reached, and the signal (SIGTERM or SIGINT) that ended the run before
        `recipe.steps`, or None; the state is saved either way.
    Raises:
        UserError: the recipe, the data or the folder's contents do not fit together.
    """
    inputs = open_inputs(recipe, workdir)
    mesh = make_mesh(recipe.mesh)
    program = make_program(recipe, inputs, mesh)
    if jax.process_index() == 0:
        write_description(recipe, workdir, inputs.tokenizer, inputs.clip_id)
    checkpoints = Checkpoints(workdir, keep=recipe.checkpoint.keep)
    start = checkpoints.latest_step() or 0
    if start >= recipe.steps:
        checkpoints.close()
        print(f"{workdir} has all its {start} steps; give more --steps to go on")
        return start, None
    progress = Progress(start, recipe.steps)
    init_key, step_key = jax.random.split(jax.random.key(recipe.seed))
    if start:
        state = checkpoints.restore(start, program.abstract_state)
        progress.say(f"continuing {workdir} at step {start}")
    else:
        state = program.init(init_key)

    bad = BadRecords(workdir / "skipped.jsonl", recipe.data.max_bad_fraction)
    batches = open_batches(recipe, inputs, bad, start)
    writer = MetricWriter(workdir, resume_step=start, tensorboard=recipe.log.tensorboard)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state.params))
    progress.say(
        f"{parameters:,} parameters, {len(inputs):,} pictures, {mesh.size} device(s); "
        "compiling the step ..."
    )
    if mesh.size > 1:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state)
        progress.say(placement_table(placements(program.abstract_state, shardings)))
    frozen = program.place_frozen()
    peak = peak_flops(jax.devices()[0].device_kind)
    flops = None
    if peak is not None:
        with contextlib.suppress(UserError):  # what cannot be counted can be trained
            flops = step_flops(recipe, inputs)
    log = StepLog(recipe, writer, progress, bad, start, flops=flops, peak=peak)
    profile = Profile(workdir / "profile", recipe.log.profile_steps)
    step, stopped_by = start, None
    with _stop_requests() as stop, jax.set_mesh(mesh):
        while step < recipe.steps and stopped_by is None:
            with log.aside():
                rows = next(batches)
            batch = {
                name: jax.make_array_from_process_local_data(batch_sharding(mesh), array)
                for name, array in rows.items()
            }
            step += 1
            with profile.step(step):
                state, metrics = program.step(state, frozen, batch, step_key)
            log.add(step, metrics)
            if profile.end(step, metrics):
                progress.say(f"profile of steps up to {step} in {workdir / 'profile'}")
            stopped_by = stop()
            is_last = step == recipe.steps
            if is_last or stopped_by is not None or step % recipe.checkpoint.every == 0:
                with log.aside():
                    checkpoints.save(step, state, recipe_to_json(recipe))
            if preview is not None and (is_last or _is_due(step, recipe)):
                clip_id, average = inputs.clip_id or "", state.ema_params
                stage = Stage(recipe, average, inputs.tokenizer, step, clip_id, inputs.codes)
                with log.aside():
                    _draw(preview, stage, workdir / "samples" / f"step_{step:07d}.png", progress)
    log.flush()
    checkpoints.close()
    profile.close()
    writer.close()
    progress.say(f"step {step}: saved in {workdir / 'checkpoints' / str(step)}")
    progress.close()
    return step, stopped_by


def _is_due(step: int, recipe: Recipe) -> bool:
    return bool(recipe.log.preview_every) and step % recipe.log.preview_every == 0


def _draw(preview: Preview, stage: Stage, path: Path, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    preview(stage, path)
    progress.say(f"samples in {path}")


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
