"""All of Orbax: a run's checkpoints, written in the background, checked, and found again.

A checkpoint is RUN/checkpoints/STEP with the state (see `state.py`) and a manifest, which holds the
resolved recipe and without which it does not count. The position in the data needs no entry: it is
step * batch size, see `rollbacks.py` for the exception.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from unclip_jax.config import CheckpointConfig
from unclip_jax.errors import UserError
from unclip_jax.training.comparing import Comparing
from unclip_jax.training.manifest import (
    Manifest,
    check_fits,
    describe,
    find_damage,
    find_missing,
    read_manifest,
    saved_steps,
    write_manifest,
)
from unclip_jax.training.processes import any_process, from_first, together
from unclip_jax.training.retention import steps_to_keep

_SAVING = ".saving"
"""Behind the step while a checkpoint has no manifest yet: a process that is killed then leaves
nothing that looks like a checkpoint."""
_UNFINISHED = (".orbax-checkpoint-tmp", _SAVING, ".deleting")
"""In the names of folders that a process left which was killed while it wrote or removed them."""


class Checkpoints:
    """The checkpoints of one run folder, open for writing.

    Args:
        abstract_state: shapes and dtypes of what is saved.
        is_first: this process writes manifests and removes what need not stay.
        comparing: of the newest checkpoint, begun before.
    Raises:
        UserError: the disk cannot hold as many checkpoints as the run keeps, and one more.
    """

    def __init__(
        self,
        workdir: Path,
        config: CheckpointConfig,
        abstract_state: Any,
        *,
        is_first: bool = True,
        comparing: Comparing | None = None,
    ) -> None:
        self._comparing = comparing
        self._folder, self._config, self._is_first = workdir / "checkpoints", config, is_first
        self._leaves = describe(abstract_state)
        self._bytes = sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state)
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        # Orbax logs a failure with its traceback before it raises it; `_fail` says it in a line.
        logging.getLogger("absl").addFilter(_is_not_of_orbax)
        if is_first:
            self._clean()
            self._check_room()

    def save(self, step: int, state: Any, recipe: dict[str, Any], loss: float | None) -> None:
        """Start writing; returns when the arrays have been copied from the devices.

        Args:
            loss: running average of the loss, by which the best checkpoints are kept.
        Raises:
            UserError: the save before this one failed, or this one at once, and the run is to stop
                then.
        """
        with together():
            self.wait()
        path = self._folder.absolute() / f"{step}{_SAVING}"
        try:
            written = ocp.save_checkpointables_async(str(path), {"state": state})
        except (OSError, ValueError, RuntimeError) as error:
            self._fail(step, error)
            return
        self._pending = (step, self._pool.submit(self._finish, path, written, recipe, loss))

    def _finish(self, path: Path, written: Any, recipe: Any, loss: float | None) -> None:
        written.result()
        if self._is_first:
            for file in path.rglob("commit_success.txt"):  # names this machine's folders
                file.unlink()
            write_manifest(path, self._leaves, recipe, loss)
            path.rename(path.with_suffix(""))
            self._remove_old()

    def failure(self) -> UserError | None:
        """Why the save that has just ended failed, if it did and the run is to stop then."""
        if self._pending is not None and self._pending[1].done():
            try:
                self.wait()
            except UserError as error:
                return error
        return None

    def wait(self, *, must_succeed: bool = False) -> None:
        """Until everything is on disk.

        Args:
            must_succeed: nothing will be saved after it.
        Raises:
            UserError: the save that was under way failed, and the run is to stop then.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending[1].result()
        except Exception as error:  # Orbax and TensorStore have many, for a full disk too
            self._fail(pending[0], error, must_stop=must_succeed)

    def _fail(self, step: int, error: Exception, *, must_stop: bool = False) -> None:
        needed, free = self._bytes, shutil.disk_usage(_existing(self._folder)).free
        if self._is_first:
            self._clean(times=5)  # others of Orbax's threads may still write there
        message = (
            f"checkpoint of step {step} was not written ({_reason(error)}): it needs "
            f"{_size(needed)} and {_size(free)} are free in {self._folder}"
        )
        if self._config.on_disk_full == "go_on" and not must_stop:
            print(f"{message}; training goes on", file=sys.stderr, flush=True)
            return
        newest = newest_step(self._folder.parent)
        after = "from the start" if newest is None else f"from step {newest}"
        raise UserError(
            f"{message}; free some space and run the same command again, it continues {after}"
        ) from error

    def restore_newest(self, abstract_state: Any) -> Any | None:
        """The newest state that is undamaged, placed as the shardings of `abstract_state` say.

        All processes call it. Damaged checkpoints that are newer are renamed to STEP.damaged, with
        one line for each.

        Returns:
            the state, or None where nothing was saved yet.
        Raises:
            UserError: all checkpoints are damaged, or do not hold what the recipe describes.
        """
        steps = sorted(saved_steps(self._folder), reverse=True)
        count = from_first(len(steps))
        damaged: list[Path] = []
        for number in range(count):
            step = from_first(steps[number] if number < len(steps) else -1)
            path = self._folder / str(step)
            begun = None if self._comparing is None else self._comparing.take(path)
            state, damage = _load(path, abstract_state, any_process, begun)
            if damage is None:
                self._put_aside(damaged)
                return state
            _warn(f"checkpoint {path} is damaged ({damage}): trying the one before it")
            damaged.append(path)
        if count:
            raise UserError(
                f"{self._folder} has no undamaged checkpoint: restore its files, or begin again "
                "with another --workdir"
            )
        return None

    def _put_aside(self, damaged: list[Path]) -> None:
        """Their steps will be saved again."""
        with together():
            for path in damaged if self._is_first else ():
                aside = path.with_name(f"{path.name}.damaged")
                _remove(aside)
                path.rename(aside)

    def close(self) -> None:
        """Wait, then let go of the thread."""
        try:
            self.wait(must_succeed=True)
        finally:
            self._pool.shutdown()

    def _remove_old(self) -> None:
        good = {step: manifest.loss for step, manifest in _good(self._folder).items()}
        kept = steps_to_keep(good, self._config)
        for step in good.keys() - kept:
            # In two moves: a process killed between them leaves no checkpoint with half its files.
            aside = self._folder / f"{step}.deleting"
            (self._folder / str(step)).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _clean(self, *, times: int = 1) -> None:
        """Remove what was left unfinished, until it was gone so many times."""
        gone = 0
        for _ in range(10 * times):
            entries = self._folder.glob("*")
            found = [one for one in entries if any(mark in one.name for mark in _UNFINISHED)]
            for entry in found:
                _remove(entry)
            gone = 0 if found else gone + 1
            if gone == times:
                return
            time.sleep(0.1)

    def _check_room(self) -> None:
        kept = self._config.keep + self._config.keep_best
        have = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        needed = (kept + 1) * self._bytes - have
        free = shutil.disk_usage(_existing(self._folder)).free
        if needed <= free:
            return
        message = (
            f"{self._folder} needs {_size(needed)} for {kept} checkpoints of {_size(self._bytes)} "
            f"and the one being written, {_size(free)} are free: free some space, lower "
            "checkpoint.keep, or name another --workdir"
        )
        if self._config.on_disk_full == "stop":
            raise UserError(message)
        _warn(message)


def newest_step(workdir: Path) -> int | None:
    """Step of the newest checkpoint of a run folder that is complete, or None. Reads no arrays.

    Raises:
        UserError: a later version of the package has written it.
    """
    return max(_good(workdir / "checkpoints"), default=None)


def load_ema_params(workdir: Path, abstract_params: Any) -> tuple[int, Any]:
    """Step and averaged weights of the newest good checkpoint, without the rest of the state.

    Args:
        abstract_params: tree of shapes with shardings, as `jax.eval_shape` and `place` make it.
    Raises:
        UserError: there is no checkpoint, all are damaged, or they are not of these shapes.
    """
    folder = workdir / "checkpoints"
    damage = None
    for step in sorted(saved_steps(folder), reverse=True):
        path = folder / str(step)
        state, damage = _load(path, {"ema_params": abstract_params}, bool)
        if damage is None:
            return step, state["ema_params"]
        _warn(f"checkpoint {path} is damaged ({damage}): trying the one before it")
    if damage is not None:
        raise UserError(f"{folder} has no undamaged checkpoint: restore its files")
    raise UserError(f"{workdir} has no finished checkpoint: train it first, or name another run")


def _load(
    path: Path,
    abstract: Any,
    agree: Callable[[bool], bool],
    begun: Future[str | None] | None = None,
) -> tuple[Any, str | None]:
    """A state while its bytes are compared with the manifest, or what is damaged.

    Args:
        agree: whether any process says so: one that cannot load must not leave the others waiting.
        begun: that comparison, if it is under way.
    """
    manifest = read_manifest(path)
    damage = manifest if isinstance(manifest, str) else find_missing(path, manifest)
    several = jax.process_count() > 1 and agree is not bool
    with ThreadPoolExecutor(1) as pool:
        comparing = None
        if isinstance(manifest, Manifest) and damage is None:
            check_fits(path, manifest, abstract)
            share = (jax.process_index(), jax.process_count()) if several else (0, 1)
            comparing = begun or pool.submit(find_damage, path, manifest, *share)
            if several:
                damage = comparing.result()
        if agree(damage is not None):
            return None, damage or _ELSEWHERE
        state, damage = _read(path, abstract)
        if comparing is not None:
            damage = comparing.result() or damage
    if agree(damage is not None):
        return None, damage or _ELSEWHERE
    return state, None


_ELSEWHERE = "as another process has found"


def _read(path: Path, abstract: Any) -> tuple[Any, str | None]:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        try:
            found = ocp.load_checkpointables(str(path.absolute()), {"state": abstract})
        except Exception as error:  # damaged bytes end in many of TensorStore's
            return None, _reason(error)
    return found["state"], None


def _good(folder: Path) -> dict[int, Manifest]:
    found = {}
    for step in saved_steps(folder):
        manifest = read_manifest(folder / str(step))
        if not isinstance(manifest, str) and find_missing(folder / str(step), manifest) is None:
            found[step] = manifest
    return found


def _remove(path: Path) -> None:
    """Whatever it is; nothing if it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    """What went wrong in one line: Orbax wraps it in errors that print the whole tree."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if "No space left" in text or "ENOSPC" in text:
        return "no space left on the disk"
    lines = text.strip(" \"'").splitlines()
    return lines[0][:200] if lines else type(error).__name__


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `abstract`, each to be placed as `shardings` says."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
