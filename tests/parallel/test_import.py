"""Importing the package silences warnings and loads no compiler."""

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


def test_imports_of_training_leave_torch_s_compiler_out() -> None:
    """It would cost each rank more than a second of CPU time."""
    program = """
import sys, torch
compile = torch.compile
import spdf_dist.training.finetune, spdf_dist.training.pretrain
assert torch.compile is compile
print([name for name in ("torch._inductor", "torch._dynamo") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("[]\n", "")
