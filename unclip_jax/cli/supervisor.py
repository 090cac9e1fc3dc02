"""train.py --restarts N: the run in a process of its own, which is started again when it dies.

On several hosts each has its supervisor: when one process is killed, the others are ended by JAX as
soon as they miss its heartbeat, and all begin again from the newest checkpoint.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence

FINAL = frozenset({0, 2, 3, 130, 143})
"""Exit codes that say what happened and that another try would repeat: done, a mistake in the
input, given up, stopped by a signal."""
LONGEST_PAUSE = 60.0
"""Seconds before a restart; the first pause is 1, each one twice as long."""
_LOOK = 0.2
"""Seconds within which a signal is noticed."""


def supervise(command: Sequence[str], restarts: int) -> int:
    """Run `command` until it ends with a final code, or has died `restarts` + 1 times.

    SIGTERM and SIGINT are passed on, once each time they come.

    Returns:
        the exit code of the last process, 128 + the number of the signal that killed it.
    """
    stopped: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {n: signal.signal(n, lambda number, _: stopped.append(number)) for n in numbers}
    try:
        for attempt in range(restarts + 1):
            code = _run(command, stopped)
            if code in FINAL or stopped or attempt == restarts:
                return code
            pause = min(2.0 ** min(attempt, 10), LONGEST_PAUSE)
            print(
                f"the run ended with code {code}: starting again in {pause:.0f} s "
                f"({attempt + 1} of {restarts})",
                file=sys.stderr,
                flush=True,
            )
            _pause(pause, stopped)
            if stopped:
                return 128 + stopped[0]
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    raise AssertionError  # the last attempt returns


def _run(command: Sequence[str], stopped: list[int]) -> int:
    """The exit code of one process, which hears of each signal in `stopped` once.

    The handler only notes a signal: were it to send it too, one that comes while the process is
    being started would reach nobody.
    """
    # A session of its own: Ctrl-C in a terminal must reach it once, from here.
    child, told = subprocess.Popen(command, start_new_session=True), 0
    while True:
        for number in stopped[told:]:
            child.send_signal(number)
            told += 1
        try:
            code = child.wait(timeout=_LOOK)
        except subprocess.TimeoutExpired:
            continue
        return 128 - code if code < 0 else code


def _pause(seconds: float, stopped: list[int]) -> None:
    """Until then, or until a signal came: Python's own sleep goes on after its handler."""
    end = time.monotonic() + seconds
    while not stopped and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK))


def without(command: Sequence[str], flag: str) -> list[str]:
    """A command line without `flag VALUE` or `flag=VALUE`."""
    kept = [word for word in command if not word.startswith(f"{flag}=")]
    if flag in kept:
        at = kept.index(flag)
        del kept[at : at + 2]
    return kept
