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
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.captions import all_captions
from unclip_jax.data.pipeline import make_batches
from unclip_jax.data.sources import Source, open_source
from unclip_jax.data.tokenizer import Tokenizer, make_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.training.checkpoint import Checkpoints, with_shardings
from unclip_jax.training.metrics import MetricWriter, Progress
from unclip_jax.training.objectives import (
    Objective,
    make_clip_objective,
    make_decoder_objective,
    make_prior_objective,
)
from unclip_jax.training.optim import make_optimizer
from unclip_jax.training.recipe import (
    CLIPRecipe,
    DecoderRecipe,
    PriorRecipe,
    Recipe,
    recipe_from_json,
    recipe_to_json,
)
from unclip_jax.training.sharding import (
    batch_sharding,
    infer_shardings,
    make_mesh,
    replicated,
)
from unclip_jax.training.stages import init_params
from unclip_jax.training.state import init_state
from unclip_jax.training.step import make_train_step
from unclip_jax.training.weights import Stage, load_clip

Preview = Callable[[Stage, Path], None]
"""(the stage with its averaged weights, RUN/samples/step_N.png) → writes that picture."""


@dataclass(frozen=True)
class _Inputs:
    """What a run works on besides its own state."""

    source: Source
    tokenizer: Tokenizer
    clip: Stage | None


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
    inputs = _open_inputs(recipe, workdir)
    mesh = make_mesh(recipe.mesh)
    if recipe.batch_size // recipe.optim.accumulate % mesh.size:
        raise UserError(
            f"batch_size {recipe.batch_size} in {recipe.optim.accumulate} micro-batches is not "
            f"divisible by {mesh.size} devices: change batch_size or optim.accumulate"
        )
    optimizer = make_optimizer(recipe.optim, recipe.steps)

    def init(key: jax.Array) -> Any:
        return init_state(init_params(recipe, key), optimizer)

    root_key = jax.random.key(recipe.seed)
    init_key, step_key = jax.random.split(root_key)
    abstract = jax.eval_shape(init, init_key)
    shardings = infer_shardings(abstract, mesh)
    _write_description(recipe, workdir, inputs)
    checkpoints = Checkpoints(workdir, keep=recipe.checkpoint.keep)
    start = checkpoints.latest_step() or 0
    progress = Progress(start, recipe.steps)
    if start:
        state = checkpoints.restore(start, with_shardings(abstract, shardings))
        progress.say(f"continuing {workdir} at step {start}")
    else:
        state = jax.jit(init, out_shardings=shardings)(init_key)
    if start >= recipe.steps:
        progress.close()
        checkpoints.close()
        print(f"{workdir} has all its {start} steps; give more --steps to go on")
        return start, None

    objective, frozen = _make_objective(recipe, inputs)
    frozen = jax.device_put(frozen, infer_shardings(frozen, mesh))
    step_fn = jax.jit(
        make_train_step(
            objective,
            optimizer,
            ema_decay=recipe.ema_decay,
            accumulate=recipe.optim.accumulate,
        ),
        donate_argnums=0,
        in_shardings=(shardings, infer_shardings(frozen, mesh), batch_sharding(mesh), None),
        out_shardings=(shardings, replicated(mesh)),
    )
    bad = BadRecords(workdir / "skipped.jsonl", recipe.data.max_bad_fraction)
    batches = make_batches(
        inputs.source,
        image_size=recipe.data.image_size,
        batch_size=recipe.batch_size,
        tokenize=inputs.tokenizer,
        seed=recipe.seed,
        start=start * recipe.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=recipe.data.threads,
        bad=bad,
    )
    writer = MetricWriter(workdir, resume_step=start, tensorboard=recipe.log.tensorboard)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    progress.say(
        f"{parameters:,} parameters, {len(inputs.source):,} pictures, {mesh.size} device(s); "
        "compiling the step ..."
    )
    log = _Log(recipe, writer, progress, bad, start)
    saved = start
    reached, stopped_by = start, None
    with _stop_requests() as stop, jax.set_mesh(mesh):
        for step in range(start + 1, recipe.steps + 1):
            batch = {
                name: jax.make_array_from_process_local_data(batch_sharding(mesh), array)
                for name, array in next(batches).items()
            }
            state, metrics = step_fn(state, frozen, batch, step_key)
            reached = step
            log.add(step, metrics)
            stopped_by = stop()
            last = step == recipe.steps or stopped_by is not None
            if last or step % recipe.checkpoint.every == 0:
                checkpoints.save(step, state, recipe_to_json(recipe))
                saved = step
            if preview is not None and (step == recipe.steps or _is_due(step, recipe)):
                stage = _stage(recipe, state, inputs, step)
                _draw(preview, stage, workdir / "samples" / f"step_{step:07d}.png", progress)
            if last:
                break
    log.flush()
    checkpoints.close()
    writer.close()
    progress.say(f"step {reached}: saved in {workdir / 'checkpoints' / str(saved)}")
    progress.close()
    return reached, stopped_by


class _Log:
    """Reads the metrics of a step only after the next one was dispatched: no device waits."""

    def __init__(
        self, recipe: Recipe, writer: MetricWriter, progress: Progress, bad: BadRecords, start: int
    ) -> None:
        self._recipe, self._writer, self._progress, self._bad = recipe, writer, progress, bad
        self._pending: tuple[int, Any] | None = None
        self._first = start + 1
        self._began = time.monotonic()
        self._since: tuple[float, int] | None = None  # when and at which step the last line was

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
        is_first = step == self._first
        if not is_first and step % self._recipe.log.every and step != self._recipe.steps:
            return
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        if is_first:
            self._progress.say(f"first step after {now - self._began:.0f} s, compilation included")
        if self._since is not None and step > self._since[1]:
            seconds = now - self._since[0]
            speed = (step - self._since[1]) * self._recipe.batch_size / seconds
            values["images_per_second"] = speed
        self._since = (now, step)
        if jax.process_index() == 0:
            self._writer.write(step, {**values, "skipped_pictures": self._bad.count})
            self._progress.update(step, values)


def _open_inputs(recipe: Recipe, workdir: Path) -> _Inputs:
    """Data, tokenizer and the frozen CLIP, checked against the recipe."""
    saved_clip = _check_same_run(recipe, workdir)
    clip = None if isinstance(recipe, CLIPRecipe) else load_clip(recipe.clip)
    source = open_source(recipe.data)
    if isinstance(recipe, CLIPRecipe):
        saved = workdir / "tokenizer.json"
        if saved.exists():
            return _Inputs(source, Tokenizer.load(saved), None)
        corpus = None
        if recipe.tokenizer.kind == "trained":
            corpus = (text for i in range(len(source)) for text in _captions(source, i))
        return _Inputs(source, make_tokenizer(recipe.tokenizer, corpus), None)
    assert clip is not None
    _check_fits_clip(recipe, clip)
    if saved_clip is not None and saved_clip != clip.clip_id:
        raise UserError(
            f"{workdir} was trained for CLIP {saved_clip}, {recipe.clip} holds {clip.clip_id}: "
            "name the CLIP it began with, or another --workdir"
        )
    return _Inputs(source, clip.tokenizer, clip)


def _captions(source: Source, index: int) -> tuple[str, ...]:
    return all_captions(source[index].captions)


def _check_fits_clip(recipe: PriorRecipe | DecoderRecipe, clip: Stage) -> None:
    """Widths and context of the frozen CLIP are those that the recipe names."""
    if not isinstance(clip.recipe, CLIPRecipe):
        raise UserError(f"{recipe.clip} is not a CLIP: name the run or folder of one in `clip`")
    have, model = clip.recipe.model, recipe.model
    pairs = [("embedding_width", model.embedding_width, have.embedding_width)]
    if isinstance(recipe, PriorRecipe):
        pairs.append(("text_width", recipe.model.text_width, have.text.width))
        pairs.append(("context_length", recipe.model.context_length, have.context_length))
    else:
        text = recipe.model.text
        pairs.append(("text.context_length", text.context_length, have.context_length))
        if text.vocab_size < clip.tokenizer.vocab_size:
            pairs.append(("text.vocab_size", text.vocab_size, clip.tokenizer.vocab_size))
    for name, given, needed in pairs:
        if given != needed:
            raise UserError(
                f"model.{name} is {given}, the CLIP in {recipe.clip} has {needed}: "
                f"pass --model.{name.replace('_', '-')} {needed}"
            )


# What may change between two calls of the same run.
_FREE = {"steps", "log", "checkpoint", "mesh", "clip"}
_FREE_DATA = {"threads", "cache_dir", "max_bad_fraction"}


def _check_same_run(recipe: Recipe, workdir: Path) -> str | None:
    """The folder is empty, or holds a run of this very recipe; the id of that run's CLIP."""
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise UserError(f"{workdir} has checkpoints but no config.json: use another --workdir")
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        saved = recipe_from_json(config["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): use another --workdir") from error
    old, new = _flat(recipe_to_json(saved)), _flat(recipe_to_json(recipe))
    for name in sorted(old.keys() | new.keys(), key=lambda name: (name != "stage", name)):
        top, _, rest = name.partition(".")
        if top in _FREE or (top == "data" and rest in _FREE_DATA):
            continue
        if old.get(name) != new.get(name):
            raise UserError(
                f"{workdir} holds a run with {name} {old.get(name)!r}, this one has "
                f"{new.get(name)!r}: use another --workdir, or the old value to continue"
            )
    return config.get("clip")


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        key: value
        for name, item in data.items()
        for key, value in _flat(item, f"{prefix}.{name}" if prefix else name).items()
    }


def _write_description(recipe: Recipe, workdir: Path, inputs: _Inputs) -> None:
    """config.json and tokenizer.json, by the first process, each written whole or not at all."""
    if jax.process_index():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be made ({error.strerror})") from error
    config = {
        "recipe": recipe_to_json(recipe),
        "clip": inputs.clip.clip_id if inputs.clip else None,
    }
    scratch = workdir / "config.json.tmp"
    scratch.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if not (workdir / "tokenizer.json").exists():
        inputs.tokenizer.save(workdir / "tokenizer.json.tmp")
        os.replace(workdir / "tokenizer.json.tmp", workdir / "tokenizer.json")
    os.replace(scratch, workdir / "config.json")


def _make_objective(recipe: Recipe, inputs: _Inputs) -> tuple[Objective, Any]:
    """The stage's objective and the frozen weights it takes."""
    if isinstance(recipe, CLIPRecipe):
        return make_clip_objective(recipe), {}
    assert inputs.clip is not None and isinstance(inputs.clip.recipe, CLIPRecipe)
    clip_config, frozen = inputs.clip.recipe.model, inputs.clip.params
    empty = np.asarray(inputs.tokenizer([""]))[0]
    if isinstance(recipe, PriorRecipe):
        return make_prior_objective(recipe, clip_config, empty), frozen
    return make_decoder_objective(recipe, clip_config, empty), frozen


def _stage(recipe: Recipe, state: Any, inputs: _Inputs, step: int) -> Stage:
    clip_id = inputs.clip.clip_id if inputs.clip else ""
    return Stage(replace(recipe), state.ema_params, inputs.tokenizer, step, clip_id)


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
