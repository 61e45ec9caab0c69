"""Builds the kernels' shared library: plain C ABI, C++17, without torch at build time. Both setup.py files use it.

Sources named *_avx2.cpp and *_avx512*.cpp use instructions beyond the baseline. They are compiled with these
instructions on x86-64 only, and called at run time only if the CPU has them.

The environment variable SPDF_TARGET_MACHINE (`x86_64` or `aarch64`) names another processor than this one. A cross
compiler, such as that of Debian's package g++-aarch64-linux-gnu, then builds the library, below build/MACHINE.
"""

import os
import platform
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MACHINE = os.environ.get("SPDF_TARGET_MACHINE") or platform.machine()
IS_CROSS = platform.machine() != MACHINE
CROSS_COMPILER = f"{MACHINE}-linux-gnu-g++"
COMMON_FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"]
AVX512_FLAGS = [
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mfma",
]
BF16_FLAGS = [*AVX512_FLAGS, "-mavx512bf16"]


def flags_of(source: Path) -> list[str]:
    if MACHINE not in ("x86_64", "AMD64"):
        return COMMON_FLAGS
    if "avx2" in source.stem:
        return [*COMMON_FLAGS, "-mavx2", "-mfma"]
    if "avx512bf16" in source.stem:
        return COMMON_FLAGS + BF16_FLAGS
    return COMMON_FLAGS + (AVX512_FLAGS if "avx512" in source.stem else [])


class BuildSharedLibrary(build_ext):
    """A shared library for ctypes instead of a Python module: no init function, no interpreter tag in the name."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + (sysconfig.get_config_var("SHLIB_SUFFIX") or ".so")

    def build_extension(self, ext: Extension) -> None:
        if IS_CROSS:
            self.compiler.set_executables(compiler_so=CROSS_COMPILER, compiler_so_cxx=CROSS_COMPILER)
        objects: list[str] = []
        for source in ext.sources:
            objects += self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=ext.include_dirs,
                extra_postargs=flags_of(Path(source)),
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        written = target.with_suffix(".new")  # renamed when complete, so that a running process keeps its mapped file
        if IS_CROSS:
            self.compiler.spawn([CROSS_COMPILER, "-shared", *objects, "-o", str(written), "-fopenmp"])
        else:
            self.compiler.link_shared_object(objects, str(written), extra_postargs=["-fopenmp"], target_lang="c++")
        written.replace(target)


class WheelForEveryPython(bdist_wheel):
    """A wheel for one platform and every Python 3: the library does not depend on the interpreter."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", f"linux_{MACHINE}" if IS_CROSS else super().get_tag()[2]


def library(csrc: Path) -> dict[str, Any]:
    """Arguments of setup() that build the library from its sources, relative to the folder of setup.py."""
    sources = sorted(str(p) for p in csrc.rglob("*.cpp") if "test" not in p.stem and p.parent.name != "test")
    headers = [str(path) for path in csrc.rglob("*.h*")]
    extension = Extension("spdf_kernels.libspdf_kernels", sources=sources, depends=headers, include_dirs=[str(csrc)])
    return {
        "ext_modules": [extension],
        # The files of different processors may not mix.
        "options": {"build": {"build_base": f"build/{MACHINE}"}} if IS_CROSS else {},
        "cmdclass": {"build_ext": BuildSharedLibrary, "bdist_wheel": WheelForEveryPython},
    }
