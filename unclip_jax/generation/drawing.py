"""Text to picture as a stream: the devices draw while the pictures before are taken away."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import jax
import numpy as np

from unclip_jax.generation.rows import RowProgram, RowRunner, Rows
from unclip_jax.generation.sampling import StagesAtOnce

AHEAD = 1
"""Micro-batches that are begun before the pictures of one are waited for."""
ROUND = 16
"""Micro-batches that go through a stage before its weights make room for the next one's."""


@dataclass(frozen=True)
class Request:
    """What a picture is drawn from; nothing else decides it."""

    prompt: str
    seed: int
    index: int
    negative: str = ""
    """What guidance leads away from; empty is the empty caption, and no image embedding."""
    guidance: float | None = None
    """Scale of the decoder's guidance; None is the sampling's."""


@dataclass(frozen=True)
class Link:
    """One stage on the way from text to picture."""

    program: RowProgram
    reads: dict[str, str]
    """The program's rows, by their names among all rows on the way."""
    makes: str
    """What its result is called there."""


@dataclass(frozen=True)
class Drawn:
    """The pictures of one micro-batch."""

    start: int
    """Number of the first request."""
    images: np.ndarray
    """[B, H, W, 3] uint8."""
    embeddings: np.ndarray | None
    """[B, E] float32, what they were decoded from."""


def draw(
    runner: RowRunner,
    links: list[Link],
    batches: Iterable[tuple[Rows, int]],
    at_once: StagesAtOnce = "all",
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Iterator[Drawn]:
    """Every row through all links, in order; what lies between two stages stays on the devices.

    Args:
        batches: micro-batches, see `micro_batches`, of what the links read that no link makes;
            taken when their turn comes.
        at_once: whether the weights of all stages are on the devices together, or of one.
        on_stage: told the name of each stage before it runs for the first time.
    """
    batches = iter(batches)
    begun: deque[tuple[Rows, int]] = deque()
    told: set[str] = set()
    start = 0
    while batch := list(islice(batches, 1 if at_once == "all" else ROUND)):
        states = [part for part, _ in batch]
        for link in links:
            if link.program.name not in told:
                told.add(link.program.name)
                on_stage(link.program.name)
            if at_once == "one":
                jax.block_until_ready(states)  # until then the weights before are in use
                runner.keep_only(link.program.stages)
            for state in states:
                given = {name: state[of] for name, of in link.reads.items()}
                given["is_real"] = state["is_real"]
                state[link.makes] = runner.start(link.program, given)
        for state, (_, count) in zip(states, batch, strict=True):
            state["image"].copy_to_host_async()
            begun.append((state, count))
        while len(begun) > AHEAD:
            drawn = _take(*begun.popleft(), start)
            start += len(drawn.images)
            yield drawn
    for state, count in begun:
        drawn = _take(state, count, start)
        start += len(drawn.images)
        yield drawn


def _take(state: Rows, count: int, start: int) -> Drawn:
    embeddings = state.get("embedding")
    vectors = None if embeddings is None else np.asarray(embeddings)[:count]
    return Drawn(start, np.asarray(state["image"])[:count], vectors)
