"""Says how far a long pass over pictures is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from unclip_jax.evaluation.encoders import Say

SAY_EVERY = 10.0
"""Seconds between two lines."""


def counted(
    pictures: Iterable[np.ndarray], count: int, name: str, say: Say, every: float = SAY_EVERY
) -> Iterator[np.ndarray]:
    """The same pictures; says now and then how many were taken, how fast, and how long it takes.

    Args:
        count: how many there are.
        name: what the lines begin with.
        every: seconds between two lines; a pass that is shorter says nothing.
    """
    began = said = time.monotonic()
    for done, picture in enumerate(pictures):
        now = time.monotonic()
        if now - said >= every and done:
            said, speed = now, done / (now - began)
            left = (count - done) / speed / 60
            say(f"{name}: {done} of {count} pictures, {speed:.2g} a second, {left:.1f} min left")
        yield picture
