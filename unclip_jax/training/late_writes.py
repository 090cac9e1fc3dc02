"""Writes of TensorStore that end after the save that they belong to has failed, and been told.

Orbax has closed its event loop by then; each of them prints a traceback that names nothing.
"""

from __future__ import annotations

import sys


def ignore_late_writes() -> None:
    """Let nothing be printed of them, unless the program has a hook of its own."""
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _tell


def _tell(unraisable: sys.UnraisableHookArgs) -> None:
    if unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(unraisable)
