"""Imports megatron-core and DeepSpeed without loading torch's compiler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def not_compiled(function: Any = None, **_options: Any) -> Any:
    """Replaces ``torch.compile``, as a decorator with and without options."""
    return not_compiled if function is None else function


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """A context in which ``torch.compile`` returns functions as they are.

    On import, megatron-core decorates fused functions with ``torch.compile``, and DeepSpeed the steps of its Muon
    optimizer. Each of these decorations loads torch's compiler: more than a second of CPU time in each rank. This
    project calls none of these functions.
    """
    compiled = torch.compile
    torch.compile = not_compiled  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiled
