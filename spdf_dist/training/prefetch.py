"""Reads the next batch in a thread while the current step runs. Order and content of batches do not change."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from spdf_dist.training.batches import Data, GlobalBatch


class Prefetch:
    """The batches of ``data``, each read one step ahead."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[GlobalBatch]] | None = None

    def batch(self, step: int) -> GlobalBatch:
        """The batch of ``step``; starts to read the next one. Raises what reading this batch raised."""
        ahead, self._next = self._next, None
        found = ahead[1].result() if ahead is not None and ahead[0] == step else self.data.batch(step)
        if step < self.data.total_steps:
            self._next = step + 1, self._thread.submit(self.data.batch, step + 1)
        return found

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)
