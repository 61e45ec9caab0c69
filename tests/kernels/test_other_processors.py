"""The C++ tests of the kernels on emulated processors.

Arm needs the packages g++-aarch64-linux-gnu and qemu-user. An x86-64 without AVX-512 needs qemu-user.
"""

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "kernels" / "csrc"
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


PRODUCT = """
#include <dlfcn.h>
#include <stdio.h>
#include "spdf_kernels.h"

#define LOAD(name) __typeof__(name) *p_##name = (__typeof__(name) *)dlsym(library, #name)

int main(int count, char **arguments) {
    void *library = dlopen(arguments[count - 1], RTLD_NOW);
    if (!library) return puts(dlerror()), 1;
    LOAD(spdf_pattern_new);
    LOAD(spdf_spmm);
    uint8_t bits[] = {0xD4}; /* rows 110 and 101 */
    float x[] = {1, 2, 3}, values[] = {10, 100, 1000, 10000}, bias[] = {1, 2}, y[2];
    spdf_pattern *pattern = p_spdf_pattern_new(bits, 2, 3, 4);
    int status = p_spdf_spmm(pattern, SPDF_PORTABLE, 0, 0, x, 1, values, bias, y, 1);
    printf("%d %g %g\\n", status, y[0], y[1]);
    return 0;
}
"""
"""Loads the library that is its argument and multiplies [[10, 100, 0], [1000, 0, 10000]] by [1, 2, 3]."""
ELF_AARCH64 = 183


def test_the_wheels_for_arm_build_here_and_their_library_runs(tmp_path: Path) -> None:
    needs(ARM_CXX, "aarch64-linux-gnu-gcc", "qemu-aarch64")
    command = [sys.executable, ROOT / "tools" / "wheelhouse.py", "--own", "--machine", "aarch64", "--out", tmp_path]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    wheels = [f"{name}-0.1.0-py3-none-linux_aarch64.whl" for name in ("spdf_dist", "spdf_kernels")]
    assert built.stdout.split() == wheels
    libraries = []
    for wheel in wheels:
        with zipfile.ZipFile(tmp_path / wheel) as content:
            libraries.append(content.read("spdf_kernels/libspdf_kernels.so"))
            tag = next(name for name in content.namelist() if name.endswith("/WHEEL"))
            assert "Tag: py3-none-linux_aarch64" in content.read(tag).decode()
            others = [name for name in content.namelist() if name.endswith(".so")]
            assert others == ["spdf_kernels/libspdf_kernels.so"]
    for library in libraries:
        assert library[:4] == b"\x7fELF" and struct.unpack_from("<H", library, 18)[0] == ELF_AARCH64
    (tmp_path / "library.so").write_bytes(libraries[1])
    (tmp_path / "product.c").write_text(PRODUCT)
    program = tmp_path / "product"
    compile_it = ["aarch64-linux-gnu-gcc", f"-I{CSRC}", tmp_path / "product.c", "-ldl", "-o", program]
    subprocess.run(compile_it, check=True)
    emulated = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", program, tmp_path / "library.so"]
    assert subprocess.run(emulated, capture_output=True, text=True).stdout == "0 211 31002\n"


def left_out(printed: str) -> set[int]:
    """Numbers of the back ends that the tests report as missing."""
    return {int(n) for n in re.findall(r"back end (\d) left out", printed)}
