"""Fixtures of GPU tests.

Without a GPU, they run on a pretended one (PRETEND_CUDA=1), on CPU tensors in Triton's interpreter
(TRITON_INTERPRET=1), or are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from pretended_cuda import pretended_cuda
from spdf_kernels import triton as gpu

PRETENCE = ExitStack()
if os.environ.get("PRETEND_CUDA"):
    PRETENCE.enter_context(pretended_cuda())


def pytest_unconfigure() -> None:
    PRETENCE.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if gpu.missing() is None:
        return
    for item in items:
        if "tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=f"{gpu.missing()}; TRITON_INTERPRET=1 runs it without a GPU"))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill new tensors with NaN, so that entries that a kernel does not write are detected."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if gpu.interpreted() else "cuda")
