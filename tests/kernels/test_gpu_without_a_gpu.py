"""The GPU kernels where there is no GPU: the GPU tests on a pretended device, machine code, and the GPU lab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def on_the_pretended_gpu(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process whose GPU is tests/gpu/pretended_cuda.py."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PRETEND_CUDA": "1", "OMP_NUM_THREADS": "1", **environment},
    )


def gpu_tests(*chosen: str) -> None:
    """Run GPU tests on the pretended device. All must pass."""
    answer = on_the_pretended_gpu("-m", "pytest", *chosen, "-o", "addopts=", "-n", "0", "-p", "no:cacheprovider")
    assert answer.returncode == 0, answer.stdout[-4000:]
    last = answer.stdout.splitlines()[-1]
    assert "passed" in last and "skipped" not in last


def test_values_of_every_kernel_are_right() -> None:
    gpu_tests("tests/gpu", "-m", "not gpu")


@pytest.mark.slow
def test_a_run_saves_goes_on_and_generates_without_mixing_devices() -> None:
    gpu_tests("tests/gpu/test_trainer_on_a_gpu.py", "-k", "compressed-balanced")


@pytest.mark.slow
def test_a_machine_with_gpus_trains_on_its_cpu_if_asked(tiny_config: Path, tmp_path: Path) -> None:
    settings = ("device=cpu", "parallel.data=1", f"run_dir={tmp_path}")
    answer = on_the_pretended_gpu("tests/gpu/pretended_cuda.py", "pretrain", str(tiny_config), *settings)
    assert answer.returncode == 0, answer.stderr[-2000:]


def test_the_pretended_device_finds_tensors_on_two_devices() -> None:
    program = """
import sys
sys.path.insert(0, "tests/gpu")
import numpy, torch
from pretended_cuda import pretended_cuda
with pretended_cuda():
    x = torch.ones(3, device="cuda")
    assert x.device == (x * 2).device == torch.zeros_like(x).device == torch.device("cuda:0") and x.is_cuda
    assert x.cpu().device == torch.ones(3).device == torch.device("cpu")
    for wrong in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(1)]), x.numpy):
        try:
            wrong()
        except (RuntimeError, TypeError) as error:
            print(type(error).__name__)
"""
    answer = on_the_pretended_gpu("-c", program)
    assert answer.stdout.split() == ["RuntimeError", "RuntimeError", "TypeError"], answer.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
def test_machine_code_uses_tensor_cores_and_spills_nothing(capability: int) -> None:
    from spdf_kernels.triton.machine_code import builds, code_of, faults

    wrong = {build.name: faults(build, code_of(build)) for build in builds(capability)}
    assert len(wrong) > 10 and not any(wrong.values()), {name: why for name, why in wrong.items() if why}


@pytest.mark.slow
def test_the_lab_runs_all_its_parts(tmp_path: Path) -> None:
    answer = on_the_pretended_gpu("-m", "gpu_lab", "run", "--smoke", "--out", str(tmp_path), PYTHONPATH="kernels")
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "gpu_lab.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "error" in line]
    parts = {line["part"] for line in lines if not line.get("skipped")}
    assert parts >= {"machine", "ceiling", "dense", "tests", "blocks", "layer", "elementwise", "expand", "attention"}
    assert parts >= {"losses", "step", "run"}
    assert {line["block"] for line in lines if line["part"] == "blocks" and "relative_error" in line} == {64, 128}
    assert (tmp_path / "gpu_lab.md").read_text().count("|") > 50 and (tmp_path / "gpu_lab.svg").exists()


def test_the_lab_says_why_it_cannot_run(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "gpu_lab", "run", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "kernels", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert answer.returncode == 2 and "no CUDA device" in answer.stderr and "gpu-pack" in answer.stderr
