"""How the hosts of a sampling job share it: who draws what, and that all of them end together.

Drawing itself needs no other host. So that one which stops or fails does not leave the others
drawing for hours, all take their micro-batches in turns and tell each other before each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from unclip_jax.errors import UserError

if TYPE_CHECKING:
    from unclip_jax.training.stop_requests import StopRequests

T = TypeVar("T")


def agree(found: np.ndarray, texts: Iterable[str]) -> np.ndarray:
    """The first host's `found` on all: what is done must look the same to those who share the rest.

    Args:
        found: [N], of one dtype on all hosts.
        texts: what all N pictures are made from and called, the same on all hosts.
    Raises:
        UserError: a host would draw other pictures.
    """
    import jax

    if jax.process_count() == 1:
        return found
    import hashlib

    from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)} {text}".encode())
    digests = np.asarray(process_allgather(np.frombuffer(digest.digest(), np.uint32)))
    others = np.flatnonzero((digests != digests[0]).any(axis=1))
    if len(others):
        raise UserError(
            f"process {others[0]} of {len(digests)} was given other prompts, options, weights or "
            "versions than process 0: start all with the same command and the same files"
        )
    return np.asarray(broadcast_one_to_all(found))


def take_turns(
    parts: Iterator[T], turns: int, write: Callable[[T], None], stop: StopRequests
) -> int | None:
    """Write all `parts`, unless a signal or a failure on any host ends all of them before.

    Args:
        parts: of this host; they may be fewer than its turns.
        turns: the same on all hosts.
    Returns:
        the signal, the same on all hosts; what was drawn until then is written.
    Raises:
        UserError: another host has failed; or this host's own failure.
    """
    from unclip_jax.config import MeshConfig
    from unclip_jax.training.processes import Agreement
    from unclip_jax.training.sharding import make_mesh

    agreement, failure = Agreement(make_mesh(MeshConfig())), None
    for turn in range(turns + 1):
        stopped_by = agreement.exchange(stop.received, failure, now=turn in (0, turns))
        if stopped_by is not None or turn == turns:
            return stopped_by
        try:
            if failure is None and (part := next(parts, None)) is not None:
                write(part)
        except Exception as error:  # whatever it is, the others must hear of it
            failure = error
        stop.listen()
    return None


def largest(number: int) -> int:
    """Of the numbers of all hosts."""
    return int(_gathered(number).max())


def total(number: int) -> int:
    """Of the numbers of all hosts."""
    return int(_gathered(number).sum())


def _gathered(number: int) -> np.ndarray:
    import jax

    if jax.process_count() == 1:
        return np.array([number])
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.int32(number)))
