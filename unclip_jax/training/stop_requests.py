"""SIGTERM and SIGINT: the first lets a run end by itself, the second ends it at once.

Python runs its own handlers only between two of its instructions, not while a compiler or a save
runs below it for minutes. So a thread hears of every signal through a pipe that the interpreter
writes to in the signal's own context.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from types import TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequests:
    """In use as a context; outside the main thread it does nothing, the caller handles signals.

    Until `listen` is called there is nothing to save, and the first signal ends the process too.

    Args:
        unheard: what is said then.
    """

    def __init__(self, unheard: str = "stopped before the first step") -> None:
        self._unheard = unheard
        self._received: int | None = None
        self._is_listening = False
        self._is_active = threading.current_thread() is threading.main_thread()

    @property
    def received(self) -> int | None:
        """The first signal that came."""
        return self._received

    def listen(self, is_listening: bool = True) -> None:
        """From now on somebody looks at `received`, and the first signal waits for that."""
        self._is_listening = is_listening

    def __enter__(self) -> StopRequests:
        if self._is_active:
            self._ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self._theirs = theirs
            self._before = {number: signal.signal(number, _ignore) for number in SIGNALS}
            self._fd_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._hear, name="signals", daemon=True)
            self._thread.start()
        return self

    def _hear(self) -> None:
        while data := self._ours.recv(1):
            number = data[0]
            if number not in SIGNALS:
                continue
            if self._received is not None or not self._is_listening:
                what = "stopped at once" if self._received else self._unheard
                print(what, file=sys.stderr, flush=True)
                os._exit(128 + number)
            self._received = number

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_active:
            signal.set_wakeup_fd(self._fd_before)
            for number, action in self._before.items():
                signal.signal(number, action)
            self._theirs.close()  # ends the thread
            self._thread.join()
            self._ours.close()


def _ignore(number: int, frame: object) -> None:
    """The thread hears of it."""
