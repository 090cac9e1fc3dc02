"""All of Orbax: a run's checkpoints, written in the background and found again.

A checkpoint is RUN/checkpoints/STEP with the state (see `state.py`) and the resolved recipe as
JSON. The position in the data needs no entry: it is step * batch size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from unclip_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one run folder, open for writing."""

    def __init__(self, workdir: Path, *, keep: int) -> None:
        self._folder = workdir / "checkpoints"
        self._pending: Any = None
        policies = ocp.training.preservation_policies
        decisions = ocp.training.save_decision_policies
        self._orbax = ocp.training.Checkpointer(
            str(self._folder.absolute()),
            # The loop decides when; every save is forced. Orbax's policies miss their own protocol
            # by the name of an argument's type.
            save_decision_policy=decisions.FixedIntervalPolicy(1),  # pyright: ignore
            preservation_policy=policies.LatestN(keep),  # pyright: ignore
            cleanup_tmp_directories=True,
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return latest_step(self._folder.parent)

    def save(self, step: int, state: Any, recipe: dict[str, Any]) -> None:
        """Start writing; returns when the arrays have been copied from the devices.

        Raises:
            UserError: the save before this one failed.
        """
        self.wait()
        self._pending = self._orbax.save_checkpointables_async(
            step, {"state": state, "config": recipe}, force=True
        )

    def wait(self) -> None:
        """Until everything is on disk.

        Raises:
            UserError: the save that was under way failed.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except OSError as error:
            raise UserError(
                f"checkpoint in {self._folder} was not written ({error}): free some space and run "
                "the same command again, it continues from the checkpoint before"
            ) from error

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state of `step`, placed as the shardings of `abstract_state` say.

        Raises:
            UserError: the checkpoint does not hold what the recipe describes.
        """
        try:
            found = self._orbax.load_checkpointables(step, {"state": abstract_state})
        except (KeyError, ValueError, OSError) as error:
            raise UserError(
                f"checkpoint {self._folder / str(step)} does not fit the recipe or is damaged "
                f"({_reason(error)}): use the recipe that made it, or another --workdir"
            ) from error
        return found["state"]

    def close(self) -> None:
        """Wait, then let go of Orbax's threads."""
        self.wait()
        self._orbax.close()


def latest_step(workdir: Path) -> int | None:
    """Step of the newest complete checkpoint of a run folder, or None."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return None
    # Orbax renames a finished checkpoint into place: a name that is a number is complete.
    steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
    return max(steps, default=None)


def load_ema_params(workdir: Path, abstract_params: Any) -> tuple[int, Any]:
    """Step and averaged weights of the newest checkpoint, without the rest of the state.

    Args:
        abstract_params: tree of shapes with shardings, as `jax.eval_shape` and `place` make it.
    Raises:
        UserError: there is no checkpoint, or not of these shapes.
    """
    step = latest_step(workdir)
    if step is None:
        raise UserError(
            f"{workdir} has no finished checkpoint: train it first, or name another run"
        )
    path = (workdir / "checkpoints" / str(step)).absolute()
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        try:
            found = ocp.load_checkpointables(str(path), {"state": {"ema_params": abstract_params}})
        except (KeyError, ValueError, OSError) as error:
            raise UserError(
                f"checkpoint {path} does not fit the config.json of its run or is damaged "
                f"({_reason(error)}): restore the files"
            ) from error
    return step, found["state"]["ema_params"]


def _reason(error: BaseException) -> str:
    """What went wrong in one line: Orbax wraps it in errors that print the whole tree."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip(" \"'").splitlines()
    return lines[0][:200] if lines else type(error).__name__


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `abstract`, each to be placed as `shardings` says."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
