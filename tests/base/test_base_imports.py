"""The base package answers fast: it imports neither torch nor numpy."""

from __future__ import annotations

import subprocess
import sys


def test_the_base_package_imports_nothing_heavy() -> None:
    modules = "atomic_files, file_locks, provenance, random_streams, signals"
    code = f"import sys\nfrom spdf_dist.base import {modules}\nassert not {{'torch', 'numpy'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
