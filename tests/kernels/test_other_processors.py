"""The C++ tests of the kernels on emulated processors.

Arm needs the packages g++-aarch64-linux-gnu and qemu-user. An x86-64 without AVX-512 needs qemu-user.
"""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "kernels" / "csrc"
ARM_CXX, ARM_OBJDUMP = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the emulation is slow


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run_tests(out: Path, emulator: str, **variables: str) -> str:
    """The output of the C++ tests under an emulator."""
    environment = os.environ | {"SANITIZERS": "", "RUN": emulator} | variables
    run = subprocess.run(["sh", CSRC / "sanitize.sh", out], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_arm_runs_vector_products_and_its_values_are_right(tmp_path: Path) -> None:
    needs(ARM_CXX, ARM_OBJDUMP, "qemu-aarch64")
    assert "0 checks failed" in run_tests(tmp_path, "qemu-aarch64", CXX=ARM_CXX)
    for products in ("spmm_compact_portable", "sddmm_products_portable"):
        code = subprocess.run(
            [ARM_OBJDUMP, "-d", tmp_path / f"{products}.cpp.o"], capture_output=True, text=True, check=True
        ).stdout
        assert re.search(r"fmla\s+v\d+\.4s", code), f"{products} multiplies without vectors"
        assert not re.search(r"fmadd\s+s", code), f"{products} multiplies one float at a time"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86-64 with a compiler for it")
def test_a_processor_without_avx512_runs_what_it_has(tmp_path: Path) -> None:
    """Back ends 1 and 2 need AVX-512, and 3 needs AVX2. The emulator kills a program at an unsupported instruction."""
    needs("qemu-x86_64")
    printed = run_tests(tmp_path, "qemu-x86_64 -cpu Haswell")
    assert "0 checks failed" in printed and left_out(printed) == {1, 2}
    older = ["qemu-x86_64", "-cpu", "Nehalem", tmp_path / "kernels_test"]
    printed = subprocess.run(older, capture_output=True, text=True, check=True).stdout
    assert "0 checks failed" in printed and left_out(printed) == {1, 2, 3}


def left_out(printed: str) -> set[int]:
    """Numbers of the back ends that the tests report as missing."""
    return {int(n) for n in re.findall(r"back end (\d) left out", printed)}
