"""Saves checkpoints: synchronously, or from a copy in host memory that a thread writes while training continues.

An asynchronous save copies this rank's slices (at most 12 bytes per parameter of the rank). A thread writes them,
computes digests and forces them to the disk. In each step the ranks exchange whether their threads are done. When all
are, they complete the checkpoint together, with the same calls, bytes and guarantees as a synchronous save. At most one
save is in flight. A process that is killed during a save leaves the earlier checkpoints intact.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from spdf_dist.checkpoint.find import latest
from spdf_dist.checkpoint.write import CheckpointWriter, Content, Report
from spdf_dist.training.engine import Engine
from spdf_dist.training.state import sharded_state
from spdf_dist.training.training_state import TrainingState


class Saver:
    """Writes a run's checkpoints. Every rank has one and makes the same calls.

    ``writer_of(state)`` returns the writer of a checkpoint and the checkpoint's content. ``saved(state)`` is
    called when a checkpoint is complete.
    """

    def __init__(
        self,
        engine: Engine,
        root: Path,
        writer_of: Callable[[TrainingState], tuple[CheckpointWriter, Content]],
        saved: Callable[[TrainingState], None],
        *,
        asynchronous: bool = False,
    ) -> None:
        self.engine = engine
        self.root = root
        self.writer_of = writer_of
        self.saved = saved
        self.asynchronous = asynchronous
        self.stalled = 0.0
        """Seconds that training has waited for checkpoints."""
        self.count = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: tuple[CheckpointWriter, Content, TrainingState, Future[Report]] | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun and is not yet complete."""
        return self._in_flight is not None

    def newest(self) -> str:
        """The path of the newest complete checkpoint, or a text that says that there is none."""
        found = latest(self.root)
        return str(found) if found else "none: the run has saved nothing yet"

    @property
    def is_done(self) -> bool:
        """Whether this rank's thread has written its part of the save in flight."""
        return self._in_flight is not None and self._in_flight[3].done()

    def save(self, state: TrainingState, *, wait: bool) -> None:
        """Save ``state``, or begin to; collective. With ``wait`` the checkpoint is complete on return.

        No other save may be in flight. Raises SpdfError on every rank if the save failed on any rank.
        """
        assert self._in_flight is None
        begin = time.perf_counter()
        state = copy.deepcopy(state)
        writer, content = self.writer_of(state)
        failure = writer.begin()
        shards = sharded_state(self.engine)
        if self.asynchronous and not wait:
            copies = [(kind, shard, tensor.detach().to("cpu", copy=True)) for kind, shard, tensor in shards]
            future = self._thread.submit(writer.write_slices, copies, content["manifest"], failure)
            self._in_flight = writer, content, state, future
        else:
            writer.complete(writer.write_slices(shards, content["manifest"], failure), content)
        self.stalled += time.perf_counter() - begin
        if self._in_flight is None:
            self._count(state)

    def complete(self) -> None:
        """Wait for the save in flight, if any, and complete it; collective. Raises SpdfError as ``save`` does."""
        if self._in_flight is None:
            return
        begin = time.perf_counter()
        (writer, content, state, future), self._in_flight = self._in_flight, None
        try:
            writer.complete(future.result(), content)
        finally:
            self.stalled += time.perf_counter() - begin
        self._count(state)

    def _count(self, state: TrainingState) -> None:
        """Count a complete checkpoint and report it."""
        self.count += 1
        self.saved(state)

    def close(self) -> None:
        """End the thread. A save that is still in flight stays incomplete."""
        self._thread.shutdown(wait=True)
