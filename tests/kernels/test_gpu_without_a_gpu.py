"""The GPU kernels where there is no GPU: their tests in Triton's interpreter, their machine code, and the GPU lab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def in_the_interpreter(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process with TRITON_INTERPRET, which Triton reads when its functions are defined."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", **environment},
    )


def test_values_of_every_kernel_are_right() -> None:
    answer = in_the_interpreter(
        "-m", "pytest", "tests/gpu", "-m", "not gpu", "-o", "addopts=", "-n", "0", "-p", "no:cacheprovider"
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout[-4000:]
    last = answer.stdout.splitlines()[-1]
    assert "passed" in last and "skipped" not in last


@pytest.mark.parametrize("capability", [80, 90])
def test_machine_code_uses_tensor_cores_and_spills_nothing(capability: int) -> None:
    from spdf_kernels.triton.machine_code import builds, code_of, faults

    wrong = {build.name: faults(build, code_of(build)) for build in builds(capability)}
    assert len(wrong) > 10 and not any(wrong.values()), {name: why for name, why in wrong.items() if why}


@pytest.mark.slow
def test_the_lab_runs_all_its_parts(tmp_path: Path) -> None:
    answer = in_the_interpreter("-m", "gpu_lab", "run", "--smoke", "--out", str(tmp_path), PYTHONPATH="kernels")
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
