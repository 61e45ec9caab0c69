"""The distribution holds every file of the packages, and its pinned packages accept its oldest Python."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "spdf_dist": "spdf_dist",
    "launcher/spdf_launcher": "spdf_launcher",
    "kernels/spdf_kernels": "spdf_kernels",
    "configs": "spdf_configs",
}
BUILT = {".so", ".pyc"}


def files(folder: Path) -> set[str]:
    """The files under a folder, without what is built."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in BUILT)
    return {str(path.relative_to(folder)) for path in found}


def test_a_build_copies_every_file_of_the_packages(tmp_path: Path) -> None:
    # A fresh egg-info: an old one lists files that the settings may lack.
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for source, package in PACKAGES.items():
        assert files(ROOT / source) - files(tmp_path / package) == set()


def test_every_pinned_package_accepts_the_oldest_python() -> None:
    """pip refuses a pinned version that needs a later patch release, such as 3.11.5 on a system with 3.11.2."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (oldest,) = (each.version for each in SpecifierSet(project["requires-python"]) if each.operator == ">=")
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    found = {package.metadata["Name"]: package.metadata.get("Requires-Python") for package in metadata.distributions()}
    assert "pymdown-extensions" in pinned & found.keys()
    assert [name for name in pinned & found.keys() if not SpecifierSet(found[name] or "").contains(oldest)] == []
