"""The distribution holds every file of the packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
