"""SIGTERM and Ctrl-C for a command whose main thread may be inside XLA for minutes."""

from __future__ import annotations

import os
import signal
import sys
from threading import Thread
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Between enter and exit a signal is heard at once, by a thread: Python would run a handler
    only when the compiler has returned.

    What is done about it: with `is_patient` the first one is noted, for a loop that looks at it.
    Otherwise, and for a second one, the process ends there, with exit code 128 + number.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came."""
        self.is_patient = False

    def __enter__(self) -> StopSignals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = Thread(target=self._listen, daemon=True, name="signals")
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._write)
        self._previous: dict[int, Any] = {
            number: signal.signal(number, lambda *_: None) for number in SIGNALS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, action in self._previous.items():
            signal.signal(number, action)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _listen(self) -> None:
        while numbers := os.read(self._read, 1):
            if numbers[0] not in SIGNALS:
                continue
            if self.number is not None or not self.is_patient:
                name = signal.Signals(numbers[0]).name
                print(f"stopped at once by {name}: the same command continues", file=sys.stderr)
                sys.stderr.flush()
                os._exit(128 + numbers[0])
            self.number = numbers[0]
