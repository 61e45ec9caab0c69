"""The wheelhouse for clusters without internet, with a stand-in for pip."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "tools" / "wheelhouse.py"


@pytest.fixture
def wheelhouse() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheelhouse", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakePip:
    """Builds wheels of sources. Downloads fail until every package in ``sources_only`` has a wheel."""

    def __init__(self, out: Path, sources_only: dict[str, str]) -> None:
        self.out, self.sources_only, self.calls = out, sources_only, []

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        self.calls.append(words)
        if words[0] == "wheel":
            name = words[-1] if words[-1] in self.sources_only else "own"
            (self.out / self.sources_only.get(name, "spdf_dist-0.1.0-py3-none-linux_x86_64.whl")).touch()
            return subprocess.CompletedProcess(words, 0, "", "")
        for name, wheel in self.sources_only.items():
            if not (self.out / wheel).exists():
                if name == "deepspeed":
                    conflict = (
                        f"Some packages have no matching distributions available for your environment:\n    {name}\n"
                    )
                    return subprocess.CompletedProcess(words, 1, conflict, "ERROR: ResolutionImpossible: see\n")
                error = f"ERROR: No matching distribution found for {name} (from spdf-dist)\n"
                return subprocess.CompletedProcess(words, 1, "", error)
        (self.out / "numpy-2.4.6-cp312-cp312-manylinux_2_28_x86_64.whl").touch()
        return subprocess.CompletedProcess(words, 0, "", "")


@pytest.fixture
def fake(tmp_path: Path, wheelhouse: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakePip]:
    monkeypatch.setattr(wheelhouse.platform, "machine", lambda: "x86_64")

    def install(**sources_only: str) -> FakePip:
        pip = FakePip(tmp_path, {name.replace("__", "=="): wheel for name, wheel in sources_only.items()})
        monkeypatch.setattr(wheelhouse, "pip", pip)
        return pip

    return install


def run(wheelhouse: ModuleType, out: Path, *more: str) -> Any:
    return wheelhouse.main(["--out", str(out), "--python", "3.12", "--machine", "x86_64", *more])


def test_packages_without_a_wheel_are_made_from_source(
    wheelhouse: ModuleType, fake: Callable[..., FakePip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = fake(deepspeed="deepspeed-0.19.8-py3-none-any.whl", rouge="rouge-1-py3-none-any.whl")
    assert run(wheelhouse, tmp_path, "--extras", "all,gpu", "--", "--extra-index-url", "URL") == 0
    printed = capsys.readouterr().out
    assert "4 wheels for Python 3.12 on x86_64" in printed and "'spdf-dist[all,gpu]'" in printed
    last = pip.calls[-1]
    assert last[0] == "download" and last[last.index("--python-version") + 1] == "3.12"
    assert {"manylinux_2_28_x86_64", "manylinux2014_x86_64", "linux_x86_64"} <= set(last)
    assert "manylinux_2_29_x86_64" not in last and last[-3:-1] == ["--extra-index-url", "URL"]


def test_a_source_that_compiles_is_refused(
    wheelhouse: ModuleType, fake: Callable[..., FakePip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(fast="fast-1-cp311-cp311-linux_x86_64.whl")
    assert run(wheelhouse, tmp_path) == 2
    assert "fits this machine only" in capsys.readouterr().err
    assert not list(tmp_path.glob("fast-*"))


def test_another_processor_needs_its_own_wheel_of_the_kernels(
    wheelhouse: ModuleType,
    fake: Callable[..., FakePip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake()
    monkeypatch.setattr(wheelhouse.shutil, "which", lambda name: None)
    assert run(wheelhouse, tmp_path, "--machine", "aarch64") == 2
    assert "must be compiled for aarch64: install aarch64-linux-gnu-g++" in capsys.readouterr().err
    (tmp_path / "spdf_dist-0.1.0-py3-none-linux_aarch64.whl").touch()
    assert run(wheelhouse, tmp_path, "--machine", "aarch64") == 0


def test_the_wheels_of_this_tree_are_built_for_both_processors(
    wheelhouse: ModuleType,
    fake: Callable[..., FakePip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pip = fake()
    monkeypatch.setattr(wheelhouse.shutil, "which", lambda name: None)
    monkeypatch.setenv("SPDF_TARGET_MACHINE", "")
    assert wheelhouse.main(["--own", "--out", str(tmp_path)]) == 2
    assert "aarch64-linux-gnu-g++ is needed for aarch64" in capsys.readouterr().err and not pip.calls
    monkeypatch.setattr(wheelhouse.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert wheelhouse.main(["--own", "--out", str(tmp_path)]) == 0
    assert [call[-1] for call in pip.calls] == [str(PATH.parents[1]), str(PATH.parents[1] / "kernels")] * 2
    assert wheelhouse.os.environ["SPDF_TARGET_MACHINE"] == "aarch64"


def test_what_pip_says_is_passed_on(
    wheelhouse: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: no network\n")
    monkeypatch.setattr(wheelhouse, "pip", lambda *words: failed)
    (tmp_path / "spdf_dist-0.1.0-py3-none-linux_aarch64.whl").touch()
    monkeypatch.setattr(wheelhouse.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(wheelhouse.shutil, "which", lambda name: None)
    assert run(wheelhouse, tmp_path, "--machine", "aarch64") == 2
    assert capsys.readouterr().err == "wheelhouse: pip download: ERROR: no network\n"


def test_a_pinned_package_without_a_wheel_is_found_in_the_words_of_a_conflict(wheelhouse: ModuleType) -> None:
    said = """The conflict is caused by:
    spdf-dist[all] 0.1.0 depends on deepspeed==0.19.8
    The user requested (constraint) deepspeed==0.19.8
"""
    assert wheelhouse.without_wheel(said) == "deepspeed==0.19.8"
    assert wheelhouse.without_wheel("ERROR: no network") is None
