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


def supervise(command: Sequence[str], restarts: int) -> int:
    """Run `command` until it ends with a final code, or has died `restarts` + 1 times.

    SIGTERM and SIGINT are passed on, once each time they come.

    Returns:
        the exit code of the last process, 128 + the number of the signal that killed it.
    """
    stopped: list[int] = []
    child: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        stopped.append(number)
        if child and child[-1].poll() is None:
            child[-1].send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        for attempt in range(restarts + 1):
            # A session of its own: Ctrl-C in a terminal must reach it once, from here.
            child.append(subprocess.Popen(command, start_new_session=True))
            code = child[-1].wait()
            code = 128 - code if code < 0 else code
            if code in FINAL or stopped or attempt == restarts:
                return code
            pause = min(2.0**attempt, LONGEST_PAUSE)
            print(
                f"the run ended with code {code}: starting again in {pause:.0f} s "
                f"({attempt + 1} of {restarts})",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(pause)
            if stopped:
                return 128 + stopped[0]
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    raise AssertionError  # the last attempt returns


def without(command: Sequence[str], flag: str) -> list[str]:
    """A command line without `flag VALUE` or `flag=VALUE`."""
    kept = [word for word in command if not word.startswith(f"{flag}=")]
    if flag in kept:
        at = kept.index(flag)
        del kept[at : at + 2]
    return kept
