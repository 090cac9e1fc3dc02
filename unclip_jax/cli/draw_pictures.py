"""Requests to pictures in a folder, over all devices of all hosts, and how long it took.

What is in the folder already stays, if it was made from the same: a job that was killed continues.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_jax.cli.progress import say
from unclip_jax.cli.sharing import agree, largest, take_turns, total
from unclip_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from unclip_jax.generation.drawing import Drawn, Request
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.training.stop_requests import StopRequests

GRID = "grid.png"
GRID_ROWS = 64
"""Prompts that are in the grid; more would make a picture that nobody can open."""
SAY_EVERY = 5.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class _Job:
    """What is to be drawn, and what of it was there at the start; the same on all hosts."""

    unclip: UnCLIP
    how: SamplingConfig
    arguments: dict[str, Any]
    requests: Sequence[Request]
    facts: list[dict[str, Any]]
    out: Path
    paths: list[Path]
    found: np.ndarray
    """[N] int8, see `find_pictures`."""
    scratch: list[Path]
    """Unfinished files; the first host's business."""
    began: float
    loaded: float
    """Moments of `time.monotonic`."""

    @property
    def missing(self) -> np.ndarray:
        """Numbers of the pictures to draw."""
        from unclip_jax.samples import SAME

        return (self.found != SAME).nonzero()[0]


def draw_pictures(
    model: str,
    requests: Sequence[Request],
    sampling: Callable[[SamplingConfig], SamplingConfig],
    out: Path,
    stop: StopRequests,
    *,
    columns: int,
    prior: str,
    upsample: int | None,
) -> int:
    """Draw every request that is not in `out` yet, each host its share, and a grid of the first.

    Args:
        model: a shipped model or a folder.
        sampling: the model's own sampling → how to draw.
        stop: hears signals.
        columns: requests of a prompt, which are a row of the grid.
    Returns:
        the exit code: 0, or 128 and the number of the signal that ended the job.
    """
    import jax

    from unclip_jax.training.processes import is_first

    stop.listen(jax.process_count() > 1)  # to the others a host that ends is one that is lost
    job = _open(model, requests, sampling, out, {"prior": prior, "upsample": upsample})
    kept = len(requests) - len(job.missing)
    there = f", {kept} of them are there" if kept else ""
    say(f"{len(requests)} pictures on {jax.device_count()} device(s){there}")
    stopped_by, drawn = _draw_missing(job, stop)
    if stopped_by is not None:
        say(
            f"stopped by {signal.Signals(stopped_by).name}: {kept + drawn} of {len(requests)} "
            f"pictures are in {out}, the same command continues"
        )
        return 128 + stopped_by
    stop.listen(False)
    if is_first():
        _finish(job, columns, time.monotonic())
    return 0


def _open(
    model: str,
    requests: Sequence[Request],
    sampling: Callable[[SamplingConfig], SamplingConfig],
    out: Path,
    arguments: dict[str, Any],
) -> _Job:
    """Load the model, and see what is there: the first host looks for all."""
    import numpy as np

    from unclip_jax.files import check_folder
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.samples import find_pictures, find_scratch, picture_name
    from unclip_jax.training.processes import is_first, together

    began = time.monotonic()
    with together():  # a host that fails ends all
        check_folder(out)
        unclip = UnCLIP.load(model)
        how = sampling(unclip.sampling)
        facts = unclip.facts(requests, how, **arguments)
        names = [picture_name(*one) for one in enumerate(facts)]
        found, scratch = np.zeros(len(names), np.int8), []
        if is_first():
            found, scratch = find_pictures(out, facts), find_scratch(out, {*names, GRID})
    found, paths = agree(found, facts), [out / name for name in names]
    loaded = time.monotonic()
    return _Job(unclip, how, arguments, requests, facts, out, paths, found, scratch, began, loaded)


def _draw_missing(job: _Job, stop: StopRequests) -> tuple[int | None, int]:
    """This host's share of what is missing; the signal that ended it, and how many all hosts drew.

    A picture does not depend on the others, so any share will do, and every host gets as many.
    """
    import jax

    from unclip_jax.samples import PictureWriter
    from unclip_jax.training.processes import together

    own = job.missing[jax.process_index() :: jax.process_count()]
    turns = largest(-(-len(own) // (job.how.batch_size * jax.local_device_count())))
    with together():
        writer = PictureWriter(job.out)

    def write(part: Drawn) -> None:
        for number, image in zip(own[part.start :], part.images, strict=False):
            writer.add(number, image, job.facts[number])

    with together(), writer:
        parts = _tell(_draw(job, own), job, len(own))
        stopped_by = take_turns(parts, turns, write, stop)
    return stopped_by, total(writer.added)


def _draw(job: _Job, own: np.ndarray) -> Iterator[Drawn]:
    """Nothing is loaded or compiled for nothing."""
    if len(own):
        requests = [job.requests[number] for number in own]
        yield from job.unclip.draw(requests, job.how, **job.arguments, on_stage=_say_stage)


def _tell(parts: Iterator[Drawn], job: _Job, count: int) -> Iterator[Drawn]:
    """The same, with a line of progress now and then."""
    done, said = 0, job.began
    for part in parts:
        yield part
        done += len(part.images)
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            say(f"{done}/{count} pictures{_left(done, count, job)}")


def _left(done: int, count: int, job: _Job) -> str:
    seconds = time.monotonic() - job.loaded - job.unclip.compile_seconds
    if seconds <= 0:
        return ""
    speed = done / seconds
    return f", {speed:.2g} a second, {(count - done) / speed / 60:.1f} min left"


def _say_stage(name: str) -> None:
    say(f"{name}: compiling, then drawing")


def _finish(job: _Job, columns: int, drawn: float) -> None:
    """See that all is there, make the grid, and say what became of the pictures.

    Args:
        drawn: the moment when the last picture was there.
    """
    from unclip_jax.data.images import save_png
    from unclip_jax.samples import OTHER, grid_of_files

    listed = set(os.listdir(job.out)) if job.out.is_dir() else set()
    gone = [path for path in job.paths if path.name not in listed and not path.exists()]
    if gone:
        raise UserError(
            f"{len(gone)} of {len(job.paths)} pictures are not in {job.out} ({gone[0].name}): let "
            "all hosts write into one folder that each of them sees, and run the same command again"
        )
    grid, shown = grid_of_files(job.paths[: GRID_ROWS * columns], columns)
    save_png(job.out / GRID, grid)
    for path in job.scratch:  # still there: what was written at the start has its name by now
        path.unlink(missing_ok=True)
    total, new, replaced = len(job.paths), len(job.missing), int((job.found == OTHER).sum())
    rest = f" of the first {shown // columns} prompts" if shown < total else ""
    print(
        f"{total} pictures in {job.out} ({total - new} kept, {new - replaced} drawn, {replaced} "
        f"replaced), grid{rest} in {job.out / GRID} ({_times(job, new, drawn)})"
    )


def _times(job: _Job, new: int, drawn: float) -> str:
    loading = f"{time.monotonic() - job.began:.1f} s: loading {job.loaded - job.began:.1f}"
    if not new:
        return loading
    compiling = job.unclip.compile_seconds
    speed = new / max(drawn - job.loaded - compiling, 1e-9)
    return f"{loading}, compiling {compiling:.1f}, then {speed:.2g} pictures a second"
