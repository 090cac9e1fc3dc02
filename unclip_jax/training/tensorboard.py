"""A run's numbers as an event file for TensorBoard (tensorboardX, the extra `track`).

tensorboardX's own `SummaryWriter` puts the machine's name into the file's, and a thread behind a
queue: when the disk is full the thread dies, and the run waits for the queue for ever. Here each
event is framed as a record of TFRecord and appended at once.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

from unclip_jax.errors import UserError
from unclip_jax.files import PatientFile, make_folder


class EventFile:
    """Appends scalars to a new file in `folder`, called after the second it was opened.

    Raises:
        UserError: tensorboardX is not installed, or the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError:
            raise UserError(
                "log.tensorboard needs tensorboardX: pip install 'unclip_jax[track]'"
            ) from None
        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        make_folder(folder)
        self._file = PatientFile(folder / f"events.out.tfevents.{time.time():.0f}.run")
        self._append(file_version="brain.Event:2")

    def write(self, step: int, values: dict[str, float]) -> None:
        """An event of `step`, with a scalar for each value."""
        value = self._summary.Summary.Value
        scalars = [value(tag=tag, simple_value=number) for tag, number in values.items()]
        self._append(step=step, summary=self._summary.Summary(value=scalars))

    def _append(self, **fields: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = self._event.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.append(length + sums[0] + data + sums[1])

    def close(self) -> None:
        """What the disk has room for is on it."""
        self._file.close()
