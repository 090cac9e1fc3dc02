"""A plan to pictures in a folder, over all devices of all hosts, and how long it took.

What is in the folder already stays, if it was made from the same: a job that was killed continues.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from unclip_jax.cli.drawing_options import sampling_of
from unclip_jax.cli.outputs import PictureFolder, TarShards
from unclip_jax.cli.progress import PictureProgress, say
from unclip_jax.cli.sharing import agree, largest, take_turns, total
from unclip_jax.cli.text_options import TextOptions
from unclip_jax.cli.text_plan import TextPlan
from unclip_jax.errors import UserError
from unclip_jax.printable import count_of

if TYPE_CHECKING:
    import numpy as np

    from unclip_jax.generation.drawing import Drawn, Request
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.training.stop_requests import StopRequests

GRID_ROWS = 64
"""Prompts that are in the grid; more would make a picture that nobody can open."""


@dataclass(frozen=True)
class _Settings:
    """What decides pictures beside their requests."""

    how: SamplingConfig
    prior: str
    upsample: int | None
    facts_of: Callable[[Request], dict[str, Any]]


@dataclass(frozen=True)
class _Work:
    """The requests that a plan asks for; the same on all hosts."""

    unclip: UnCLIP
    plan: TextPlan
    settings: list[_Settings]

    def request(self, number: int) -> Request:
        """Of a picture, by its number."""
        from unclip_jax.generation.drawing import Request

        one = self.plan.pictures[number]
        return Request(one.prompt, one.seed, one.index, one.negative, one.guidance)

    def facts(self, number: int) -> dict[str, Any]:
        """What a picture is made from."""
        return self.settings[self.plan.pictures[number].settings].facts_of(self.request(number))

    def groups(self, numbers: np.ndarray) -> list[tuple[_Settings, list[int]]]:
        """Of these pictures those that one compiled program draws, see `kind_of`; a picture must
        not depend on which others are asked for."""
        from unclip_jax.generation.text_to_image import kind_of

        found: dict[Any, list[int]] = {}
        for number in map(int, numbers):
            place = self.plan.pictures[number].settings
            kind = kind_of(self.request(number), self.settings[place].how)
            found.setdefault((place, kind), []).append(number)
        return [(self.settings[place], found[place, kind]) for place, kind in found]


@dataclass(frozen=True)
class _Job:
    """What is to be drawn, and what of it was there at the start; the same on all hosts."""

    work: _Work
    output: PictureFolder
    found: np.ndarray
    """[N] int8, see `find_pictures`."""
    scratch: list[Any]
    """Unfinished files; the first host's business."""
    tell: Callable[[dict[str, Any]], None]
    """Told the manifest's line of every picture that is there."""
    began: float
    loaded: float
    """Moments of `time.monotonic`."""

    @property
    def missing(self) -> np.ndarray:
        """Numbers of the pictures to draw."""
        from unclip_jax.samples import SAME

        return (self.found != SAME).nonzero()[0]


def draw_pictures(plan: TextPlan, options: TextOptions, out: Any, stop: StopRequests) -> int:
    """Draw every picture that is not in `out` yet, each host its share, and a grid of the first.

    Args:
        out: the folder.
        stop: hears signals.
    Returns:
        the exit code: 0, or 128 and the number of the signal that ended the job.
    """
    import jax

    from unclip_jax.training.processes import is_first

    stop.listen(jax.process_count() > 1)  # to the others a host that ends is one that is lost
    job = _open(plan, options, out)
    count = len(plan.pictures)
    kept = count - len(job.missing)
    there = f", {kept} of them are there" if kept else ""
    say(f"{count} pictures on {jax.device_count()} device(s){there}")
    stopped_by, drawn = _draw_missing(job, stop)
    if stopped_by is not None:
        say(
            f"stopped by {signal.Signals(stopped_by).name}: {kept + drawn} of {count} "
            f"pictures are in {out}, the same command continues"
        )
        return 128 + stopped_by
    stop.listen(False)
    if is_first():
        said = _finish(job, time.monotonic())
        say(said) if options.format == "jsonl" else print(said)
    return 0


def _open(plan: TextPlan, options: TextOptions, out: Any) -> _Job:
    """Load the model, and see what is there: the first host looks for all."""
    import numpy as np

    from unclip_jax.data.picture_manifest import GRID, NAME
    from unclip_jax.data.provenance import facts_text
    from unclip_jax.files import check_folder
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.samples import SAME
    from unclip_jax.training.processes import is_first, together

    began = time.monotonic()
    with together():  # a host that fails ends all
        check_folder(out)
        unclip = UnCLIP.load(options.model, _stages_for([one for _, one in plan.settings]))
        work = _Work(unclip, plan, [_settings(unclip, *one) for one in plan.settings])
        output, tell = _output(work, options, out), _teller(options, out)
        found, scratch = np.zeros(len(plan.names), np.int8), []
        if is_first():
            found, scratch = output.find(), output.scratch((GRID, NAME))
    numbers = range(len(plan.names))
    found = agree(found, (facts_text(work.facts(n)) + plan.names[n] for n in numbers))
    if is_first() and options.format == "jsonl":
        for line in output.lines((found == SAME).nonzero()[0]):
            tell(line)
    return _Job(work, output, found, scratch, tell, began, time.monotonic())


def _stages_for(wanted: list[TextOptions]) -> set[str]:
    """The stages that may be needed for pictures drawn so: reading one takes time and memory."""
    from unclip_jax.generation.model_folder import INPAINTING, STAGES, UPSAMPLERS
    from unclip_jax.generation.programs import PRIORS

    priors = {PRIORS[one.prior] for one in wanted if one.prior in PRIORS}
    unused = set(PRIORS.values()) - priors
    if all(one.upsample is None for one in wanted):
        unused |= set(UPSAMPLERS)
    return {name for name in STAGES if name not in unused and not name.endswith(INPAINTING)}


def _settings(unclip: UnCLIP, where: str, options: TextOptions) -> _Settings:
    """What options mean for a model; a mistake names the line that has them."""
    try:
        how = sampling_of(options, unclip.sampling)
        arguments = {"prior": options.prior, "upsample": options.upsample}
        return _Settings(how, **arguments, facts_of=unclip.make_facts(how, **arguments))
    except UserError as error:
        raise error if where.startswith("prompt ") else UserError(f"{where}: {error}") from None


def _output(work: _Work, options: TextOptions, out: Any) -> PictureFolder:
    names, has_metadata = work.plan.names, not options.no_metadata
    if options.format != "tar":
        return PictureFolder(out, names, work.facts, has_metadata=has_metadata)
    size = options.shard_size
    return TarShards(out, names, work.facts, has_metadata=has_metadata, size=size)


def _teller(options: TextOptions, out: Any) -> Callable[[dict[str, Any]], None]:
    """What prints a line of JSON for a finished picture, if that was asked for."""
    if options.format != "jsonl":
        return lambda line: None
    lock = threading.Lock()

    def tell(line: dict[str, Any]) -> None:
        with lock:
            print(json.dumps({**line, "path": str(out / line["path"])}), flush=True)

    return tell


def _draw_missing(job: _Job, stop: StopRequests) -> tuple[int | None, int]:
    """This host's share of what is missing; the signal that ended it, and how many all hosts drew.

    A picture does not depend on the others, so any share will do, and every host gets as many.
    """
    import jax

    from unclip_jax.training.processes import together

    process, count = jax.process_index(), jax.process_count()
    own = job.output.share(job.missing, process, count)
    groups = job.work.groups(own)
    sizes = [-(-len(numbers) // (s.how.batch_size * _devices())) for s, numbers in groups]
    turns = largest(sum(sizes))
    with together():
        writer = job.output.writer(process, count, job.tell)

    def write(part: Drawn, numbers: list[int]) -> None:
        for number, image in zip(numbers, part.images, strict=True):
            writer.add(job.work.plan.names[number], image, job.work.facts(number))

    with PictureProgress(len(own)) as progress, together(), writer:
        job.work.unclip.runner.on_compile = progress.compiling
        parts = _parts(job.work, groups, progress)
        stopped_by = take_turns(parts, turns, lambda part: write(*part), stop)
    return stopped_by, total(writer.added)


def _devices() -> int:
    import jax

    return jax.local_device_count()


def _parts(
    work: _Work, groups: list[tuple[_Settings, list[int]]], progress: PictureProgress
) -> Iterator[tuple[Drawn, list[int]]]:
    """Micro-batches with their pictures' numbers. Nothing is loaded or compiled for nothing."""
    for settings, numbers in groups:
        requests = [work.request(number) for number in numbers]
        draw = partial(work.unclip.draw, prior=settings.prior, upsample=settings.upsample)
        for part in draw(requests, settings.how):
            count = len(part.images)
            yield part, numbers[part.start : part.start + count]
            progress.advance(count)


def _finish(job: _Job, drawn: float) -> str:
    """See that all is there, write manifest and grid, and say what became of the pictures.

    Args:
        drawn: the moment when the last picture was there.
    """
    from unclip_jax.data.images import save_png
    from unclip_jax.data.picture_manifest import GRID, write_manifest
    from unclip_jax.samples import OTHER

    output, count = job.output, len(job.output.names)
    if gone := output.gone():
        raise UserError(
            f"{len(gone)} of {count} pictures are not in {output.out} ({gone[0]}): let "
            "all hosts write into one folder that each of them sees, and run the same command again"
        )
    write_manifest(output.out, output.lines(range(count)))
    sheet, shown = _sheet(job)
    save_png(output.out / GRID, sheet)
    output.close()
    for path in job.scratch:  # still there: what was written at the start has its name by now
        path.unlink(missing_ok=True)
    new, replaced = len(job.missing), int((job.found == OTHER).sum())
    rest = f" of the first {shown} prompts" if shown < len(job.work.plan.rows) else ""
    return (
        f"{count_of(count, 'picture')} in {output.out} ({count - new} kept, "
        f"{new - replaced} drawn, {replaced} replaced), grid{rest} in {output.out / GRID} "
        f"({_times(job, new, drawn)})"
    )


def _sheet(job: _Job) -> tuple[np.ndarray, int]:
    """The first rows of pictures, as many as a viewer can open, and how many those are."""
    from unclip_jax.data.contact_sheet import make_sheet
    from unclip_jax.data.images import MAX_PIXELS, resize_and_crop

    plan = job.work.plan
    first = job.output.picture(0)
    side = first.shape[0]
    columns = max(len(numbers) for _, numbers in plan.rows[:GRID_ROWS])
    shown = plan.rows[: max(1, min(GRID_ROWS, MAX_PIXELS // (columns * side * side)))]
    rows = [[resize_and_crop(job.output.picture(n), side) for n in numbers] for _, numbers in shown]
    labels = [label for label, _ in shown] if plan.columns else []
    return make_sheet(rows, labels, plan.columns), len(shown)


def _times(job: _Job, new: int, drawn: float) -> str:
    loading = f"{time.monotonic() - job.began:.1f} s: loading {job.loaded - job.began:.1f}"
    if not new:
        return loading
    compiling = job.work.unclip.compile_seconds
    speed = new / max(drawn - job.loaded - compiling, 1e-9)
    return f"{loading}, compiling {compiling:.1f}, then {speed:.2g} pictures a second"
