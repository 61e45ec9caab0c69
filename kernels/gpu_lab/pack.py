"""Collects wheels, the source tree and a script for a machine with a GPU and without internet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = (
    "megatron-core",
    "hjson",
    "msgpack",
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "psutil",
    "py-cpuinfo",
    "einops",
    "zstandard",
    "webdataset",
    "braceexpand",
    "sentencepiece",
)
"""Packages of the trainer other than torch, Triton, numpy, safetensors, PyYAML, tqdm and tensorboard."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
MAX_BYTES = 64 * 2**20


def pinned() -> dict[str, str]:
    """The versions in constraints.txt by package name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower().replace("-", "_"): version.strip() for name, version in pairs}


def write_pack(out: Path, python: str) -> int:
    """Write OUT/{wheels, metadata, tree.tar.gz, run.sh}; return 1 if it is larger than MAX_BYTES."""
    wheels = out / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    wheels.mkdir(parents=True)
    versions = pinned()
    names = [f"{name}=={versions[name.lower().replace('-', '_')]}" for name in WHEELS]
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", python,
         "--implementation", "cp", *platforms, "--platform", "any", "-d", str(wheels), *names],
        check=True,
    )  # fmt: skip
    # DeepSpeed is published as source. Without its compiled operators the wheel is pure Python.
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels),
         f"deepspeed=={versions['deepspeed']}"],
        check=True,
        env={**os.environ, "DS_BUILD_OPS": "0"},
    )  # fmt: skip
    subprocess.run(
        ["git", "archive", "--format=tar.gz", "-o", str((out / "tree.tar.gz").resolve()), "HEAD"], cwd=ROOT, check=True
    )
    # Commands, tasks and patterns are entry points, which need the metadata of an installation. Nothing is built.
    metadata = out / "metadata"
    metadata.mkdir()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(metadata.resolve())], cwd=ROOT, check=True
    )
    shutil.copy(Path(__file__).with_name("run.sh"), out / "run.sh")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB of {MAX_BYTES // 2**20}. On the machine with the GPU: bash run.sh")
    return 1 if size > MAX_BYTES else 0
