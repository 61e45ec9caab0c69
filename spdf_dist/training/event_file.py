"""Writes a file of TensorBoard events, without the thread of torch's ``SummaryWriter``.

That thread prints a traceback when a write fails, opens the file for every record, and decides by the system's clock
when to flush. Here an error is raised where it happens, and records are on their way to the disk after every call.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spdf_dist.base.atomic_files import open_new

NAME = re.compile(r"events\.out\.tfevents\.(\d{10,12})\.")


class EventFile:
    """One new event file in a folder. Every call raises OSError if it cannot write."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """Create the folder and the file. TensorBoard hides older events from step ``purge_step`` on.

        Raises OSError, and UnicodeError if the path is not UTF-8, which TensorBoard requires.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        str(folder).encode()
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names. The clock may have been set back since the last one.
        earlier = [int(match[1]) for path in folder.iterdir() if (match := NAME.match(path.name))]
        second = max([int(time.time()), *(number + 1 for number in earlier)])
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = open_new(folder / name, "wb")
        self._records = RecordWriter(self._file)
        self._event = Event
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self._file.flush()

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Write numbers of a step, by name."""
        from torch.utils.tensorboard.summary import scalar

        for name, value in scalars.items():
            self._write(step=step, summary=scalar(name, value))
        self._flush()

    def add_text(self, name: str, content: str, step: int) -> None:
        """Write a text in Markdown."""
        from torch.utils.tensorboard.summary import text

        self._write(step=step, summary=text(name, content))
        self._flush()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def _flush(self) -> None:
        """Hand the records to the operating system. Raises FileNotFoundError if the file has been deleted."""
        self._file.flush()
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise FileNotFoundError(None, "the file has been deleted")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
