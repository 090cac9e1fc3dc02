"""Previews aside of the thread that hears signals: no JAX program can be interrupted, and the first
preview is compiled for a minute.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax

from unclip_jax.files import NotWritten, make_folder
from unclip_jax.training.stop_requests import StopRequests

_NAME = "preview"
_LOOK = 0.1
"""Seconds within which a signal is answered."""


def draw_aside(
    draw: Callable[[Path], None], path: Path, stop: StopRequests, *, must_write: bool
) -> str:
    """Call `draw(path)` in a thread and wait for it, until a signal comes: the thread is then left.

    Args:
        must_write: otherwise a file that cannot be written is only told.
    Returns:
        what became of it, to be said.
    Raises:
        NotWritten: the file could not be written.
        Exception: what `draw` raises.
    """
    try:
        make_folder(path.parent)
        if _call_aside(lambda: draw(path), stop):
            return f"samples in {path}"
    except NotWritten as error:
        if must_write:
            raise
        return f"{error.what}; training goes on"
    return "stopped before the samples were drawn"


def _call_aside(call: Callable[[], None], stop: StopRequests) -> bool:
    """Whether it has ended before a signal came."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name=_NAME, daemon=True)
    thread.start()
    while thread.is_alive() and stop.received is None:
        thread.join(_LOOK)
    if failures:
        raise failures[0]
    return not thread.is_alive()


def exit_without_preview(code: int) -> None:
    """End the process at once if a preview was left; otherwise do nothing.

    Python and JAX would wait for the running program first. Everything else must be on disk.
    """
    if all(thread.name != _NAME for thread in threading.enumerate()):
        return
    if jax.process_count() > 1:  # the others would take the end for a crash
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
