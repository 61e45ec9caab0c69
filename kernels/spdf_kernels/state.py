"""Bytes of a sparse weight's model state in training, and the time to prepare its pattern.

The state has parameter, gradient and two moments of the kept entries in float32, the mask, and the indices and
generated code of the three products. A dense weight takes 16 bytes per entry.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from spdf_kernels import backends
from spdf_kernels.pattern import SparsityPattern

BYTES_OF_ENTRY = 16
"""Parameter, gradient and two moments in float32."""


@dataclass(frozen=True)
class PathState:
    """State of one or several weights on one path: sizes in bytes, time in seconds."""

    backends: tuple[str, ...]  # of forward, dX and dW
    kept: int
    entries: int
    index_bytes: int
    code_bytes: int
    prepare_s: float

    @property
    def bytes(self) -> int:
        """Size of the whole state."""
        return BYTES_OF_ENTRY * self.kept + self.index_bytes + self.code_bytes

    def summary(self) -> dict[str, Any]:
        """The state as JSON, without the time."""
        dense = BYTES_OF_ENTRY * self.entries
        return {
            "backends": list(dict.fromkeys(self.backends)),
            "values_bytes": BYTES_OF_ENTRY * self.kept,
            "index_bytes": self.index_bytes,
            "code_bytes": self.code_bytes,
            "bytes": self.bytes,
            "of_dense": self.bytes / dense if dense else 0.0,
        }


States = Mapping[str, PathState | str]
"""States by path of the back ends; a text is the reason why the path is not available."""


def model_state(mask: torch.Tensor, dtype: torch.dtype = torch.float32) -> dict[str, PathState | str]:
    """States of a weight with this bool mask [out, in], by path of the back ends that skip its work.

    On a CPU `compact` is compressed rows and `generated` is machine code. Indices and code are those of products in
    `dtype`, float32 or bfloat16. Prepares a pattern per path and frees it.
    """
    found: dict[str, PathState | str] = {}
    for path, backend in backends_by_path(SparsityPattern.from_mask(mask), dtype).items():
        reason = backend.available()
        if reason is not None:
            found[path] = reason
            continue
        with forced_backend(backend.name):
            start = time.perf_counter()
            pattern = SparsityPattern.from_mask(mask)
            description = backends.describe(pattern, dtype)
            seconds = time.perf_counter() - start
        names = (description.forward, description.grad_input, description.grad_values)
        found[path] = PathState(
            names, pattern.nnz, mask.numel(), description.index_bytes, description.code_bytes, seconds
        )
    return found


def backends_by_path(pattern: SparsityPattern, dtype: torch.dtype = torch.float32) -> dict[str, backends.Backend]:
    """The preferred back end of each path that skips a pattern's work, the least preferred path first.

    A forced back end is the one of its path. If no back end of a path is available, it is the one whose `available`
    gives the reason.
    """
    found: dict[str, backends.Backend] = {}
    preferred = sorted(backends.backends(), key=lambda backend: backend.name != os.environ.get(backends.VARIABLE))
    for backend in reversed(preferred):
        if not backend.skips_work or backend.supports(pattern.device, dtype, pattern) is not None:
            continue
        if backend.path not in found or backend.available() is None or found[backend.path].available() is not None:
            found[backend.path] = backend
    return found


def total_state(states: Iterable[States]) -> dict[str, PathState | str]:
    """The sum of the states of each path; `backends` has all back ends that occur."""
    total: dict[str, PathState | str] = {}
    for state in states:
        for path, one in state.items():
            before = total.get(path)
            if isinstance(one, str) or not isinstance(before, PathState):
                total[path] = one
                continue
            total[path] = PathState(
                tuple(dict.fromkeys(before.backends + one.backends)),
                before.kept + one.kept,
                before.entries + one.entries,
                before.index_bytes + one.index_bytes,
                before.code_bytes + one.code_bytes,
                before.prepare_s + one.prepare_s,
            )
    return total


def summary_of(state: PathState | str) -> dict[str, Any]:
    """A state as JSON: `PathState.summary`, or ``missing`` with the reason."""
    return {"missing": state} if isinstance(state, str) else state.summary()


def total_summary(states: Iterable[States]) -> dict[str, dict[str, Any]]:
    """The sums as JSON by path, with ``prepare_s``, the seconds of preparation."""
    return {
        path: summary_of(state) | ({"prepare_s": state.prepare_s} if isinstance(state, PathState) else {})
        for path, state in total_state(states).items()
    }


@contextmanager
def forced_backend(name: str) -> Iterator[None]:
    """Force the back end `name` in this context."""
    before = os.environ.get(backends.VARIABLE)
    os.environ[backends.VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[backends.VARIABLE]
        else:
            os.environ[backends.VARIABLE] = before
