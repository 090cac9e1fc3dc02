"""Requests to pictures in a folder, over all devices of all hosts, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_jax.cli.progress import say

if TYPE_CHECKING:
    from unclip_jax.generation.drawing import Request
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.pipeline import UnCLIP

GRID_ROWS = 64
"""Prompts that are in the grid; more would make a picture that nobody can open."""
SAY_EVERY = 5.0
"""Seconds between two lines of progress."""


def draw_pictures(
    model: str,
    requests: Sequence[Request],
    sampling: Any,
    out: Path,
    *,
    columns: int,
    prior: str,
    upsample: int | None,
) -> None:
    """Draw every request into `out`, each host its share, and a grid of the first prompts.

    Args:
        model: a shipped model or a folder.
        sampling: the model's own sampling → how to draw.
        columns: requests of a prompt, which are a row of the grid.
    """
    import jax

    from unclip_jax.data.images import save_png
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.samples import PictureWriter, grid_of_files, picture_name
    from unclip_jax.training.processes import together

    began = time.monotonic()
    arguments: dict[str, Any] = {"prior": prior, "upsample": upsample}
    with together():  # a host that fails ends all
        unclip = UnCLIP.load(model)
        loaded = time.monotonic() - began
        how: SamplingConfig = sampling(unclip.sampling)
        # A picture does not depend on the others: any share will do, and every host gets as many.
        numbers = range(jax.process_index(), len(requests), jax.process_count())
        own = [requests[number] for number in numbers]
        facts = unclip.facts(own, how, **arguments)
        say(f"{len(requests)} pictures on {jax.device_count()} device(s)")
        done, said = 0, began
        with PictureWriter(out) as writer:
            for part in unclip.draw(own, how, **arguments, on_stage=_say_stage) if own else ():
                for row, image in enumerate(part.images, part.start):
                    writer.add(numbers[row], image, facts[row])
                done += len(part.images)
                if time.monotonic() - said > SAY_EVERY:
                    said = time.monotonic()
                    left = _left(done, len(own), unclip, began + loaded)
                    say(f"{done}/{len(own)} pictures{left}")
            drawn = time.monotonic() - began
    if jax.process_index() == 0:
        first = unclip.facts(requests[: GRID_ROWS * columns], how, **arguments)
        grid, shown = grid_of_files([out / picture_name(*one) for one in enumerate(first)], columns)
        save_png(out / "grid.png", grid)
        rest = f" of the first {shown // columns} prompts" if shown < len(requests) else ""
        total, compiling = time.monotonic() - began, unclip.compile_seconds
        speed = len(requests) / max(drawn - loaded - compiling, 1e-9)
        print(
            f"{len(requests)} pictures in {out}, grid{rest} in {out / 'grid.png'} ({total:.1f} s: "
            f"loading {loaded:.1f}, compiling {compiling:.1f}, then {speed:.2g} pictures a second)"
        )


def _left(done: int, total: int, unclip: UnCLIP, began: float) -> str:
    seconds = time.monotonic() - began - unclip.compile_seconds
    if seconds <= 0:
        return ""
    speed = done / seconds
    return f", {speed:.2g} a second, {(total - done) / speed / 60:.1f} min left"


def _say_stage(name: str) -> None:
    say(f"{name}: compiling, then drawing")
