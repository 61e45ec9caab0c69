"""The progress display of tokenization."""

from __future__ import annotations

import sys
import time

from spdf_dist.data.readers import Chunk, Problem
from spdf_dist.data.remote import Input, known_bytes

PRINTED_PROBLEMS = 100


class PackProgress:
    """A progress bar on standard error (input bytes, MB/s of text, tokens/s). Problems are printed above it."""

    def __init__(self, files: list[tuple[int, Input]], show: bool) -> None:
        from spdf_dist.base.progress_bar import ProgressBar

        sizes = [known_bytes(given) for _, given in files]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        self._bar = ProgressBar(total=total, unit="B", unit_scale=True, desc="tokenizing", disable=not show)
        self._start = time.monotonic()
        self._file = ""
        self._position = 0
        self._problems = 0
        self._text_bytes = 0
        self._tokens = 0

    def advance(self, chunk: Chunk, text_bytes: int, tokens: int) -> None:
        """Count a completed chunk."""
        if chunk.file != self._file:
            self._file, self._position = chunk.file, 0
        self._text_bytes += text_bytes
        self._tokens += tokens
        seconds = max(1e-9, time.monotonic() - self._start)
        rates = f"{self._text_bytes / seconds / 1e6:.1f} MB/s text, {self._tokens / seconds / 1e3:.0f}k tokens/s"
        self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(chunk.position - self._position)
        self._position = chunk.position

    def problem(self, problem: Problem) -> None:
        """Print a problem, up to ``PRINTED_PROBLEMS`` of them."""
        self._problems += 1
        if self._problems <= PRINTED_PROBLEMS:
            self._bar.write(str(problem), file=sys.stderr)
        elif self._problems == PRINTED_PROBLEMS + 1:
            self._bar.write("more problems are counted, not printed", file=sys.stderr)

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()
