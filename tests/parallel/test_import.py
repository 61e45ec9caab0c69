"""Importing the package silences warnings."""

from __future__ import annotations

import os
import subprocess
import sys


def test_torch_for_cuda_on_a_machine_with_nvcc_and_no_gpu_says_nothing() -> None:
    """As on the login node of a cluster. Imports must print nothing, so that an error is the only line on stderr."""
    program = """
import spdf_dist.parallel, torch
torch.version.cuda, torch.cuda._is_compiled, torch.cuda.is_available = "13.0", lambda: True, lambda: False
import torch.utils.cpp_extension
assert torch.utils.cpp_extension.CUDA_HOME == "/usr"
"""
    environment = os.environ | {"CUDA_HOME": "/usr"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
