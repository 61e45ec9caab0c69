"""Collects wheels, the source tree and a script for a machine with a GPU and without internet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PRESENT = ("torch", "triton", "numpy")
"""What the machine with the GPU has, with what these packages require."""
OWN = "spdf-dist"
NEEDED = (OWN, "pytest")
SOURCE_ONLY = "deepspeed"  # published as source; without its compiled operators, its wheel is pure Python
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
MAX_BYTES = 64 * 2**20


def required(roots: tuple[str, ...]) -> dict[str, str]:
    """The installed version of each package that ROOTS need (extras aside), themselves included, by normalised name."""
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found[name] = metadata.version(name)
        requirements = map(Requirement, metadata.requires(name) or [])
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def carried() -> dict[str, str]:
    """The version of each package whose wheel the pack carries: what the lab needs without what is present."""
    found = required(NEEDED)
    for name in {OWN, *required(PRESENT)}:
        found.pop(name, None)
    return found


def write_pack(out: Path, python: str) -> int:
    """Write OUT/{wheels, metadata, tree.tar.gz, run.sh}; return 1 if it is larger than MAX_BYTES."""
    wheels = out / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    wheels.mkdir(parents=True)
    wanted = carried()
    from_source = f"{SOURCE_ONLY}=={wanted.pop(SOURCE_ONLY)}"
    names = [f"{name}=={version}" for name, version in wanted.items()]
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", python,
         "--implementation", "cp", *platforms, "--platform", "any", "-d", str(wheels), *names],
        check=True,
    )  # fmt: skip
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), from_source],
        check=True,
        env={**os.environ, "DS_BUILD_OPS": "0"},
    )  # fmt: skip
    subprocess.run(
        ["git", "archive", "--format=tar.gz", "-o", str((out / "tree.tar.gz").resolve()), "HEAD"], cwd=ROOT, check=True
    )
    # Commands, tasks and patterns are entry points, which need the metadata of an installation. Nothing is built.
    entry_points = out / "metadata"
    entry_points.mkdir()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(entry_points.resolve())], cwd=ROOT, check=True
    )
    shutil.copy(Path(__file__).with_name("run.sh"), out / "run.sh")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB of {MAX_BYTES // 2**20}. On the machine with the GPU: bash run.sh")
    return 1 if size > MAX_BYTES else 0
