"""Whether this machine can run the kernels."""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch

MIN_CAPABILITY = (8, 0)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing() -> str | None:
    """Why this machine cannot run the kernels; None if it can."""
    return no_triton() or (None if interpreted() else no_gpu())


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one; Triton launches on it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@functools.cache
def no_triton() -> str | None:
    """Why Triton cannot be imported; None if it can."""
    return None if importlib.util.find_spec("triton") else "triton is not installed: it comes with the extra gpu"


@functools.cache
def no_gpu() -> str | None:
    """Why there is no GPU for the kernels; None if there is one."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.version.cuda is None:
        return "torch is not built for CUDA"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return "the GPU has compute capability {}.{}; {}.{} is needed".format(*capability, *MIN_CAPABILITY)
    return None
