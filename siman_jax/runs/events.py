"""Write a run's metrics for TensorBoard."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from siman_jax.runs.dispensable import Dispensable


class Events:
    """Writes event files; after a failure the run continues and nothing more is written.

    Args:
      folder: folder of the files; created if needed.
      step: step from which training continues; TensorBoard discards events beyond it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._dispensable = Dispensable(f"TensorBoard's events in {folder}")
        self._writer: RecordWriter | None = None
        with self._dispensable:
            folder.mkdir(exist_ok=True)
            # tensorboardX's SummaryWriter is not used: a full disk kills its thread, and its queue
            # needs /dev/shm.
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
            self._writer = RecordWriter(str(folder / name))
            self._add(Event(file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            self._add(Event(step=step + 1, session_log=start))
            self._writer.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row of the log, which contains numbers and mappings from names to numbers."""
        if self._writer is None or self._dispensable.failed:
            return
        with self._dispensable:
            for name, value in row.items():
                values = value if isinstance(value, Mapping) else {"": value}
                for key, number in values.items():
                    tag = f"{name}/{key}".rstrip("/")
                    self._add(Event(step=row["step"], summary=summary.scalar(tag, number)))
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with self._dispensable:
                self._writer.close()

    def _add(self, event: Event) -> None:
        assert self._writer is not None
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
