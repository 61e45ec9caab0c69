"""The distribution spdf-kernels, built only from kernels/, works with torch and without the trainer."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_of_the_kernels_runs_the_example_with_torch_only(tmp_path: Path) -> None:
    sources = tmp_path / "kernels"
    shutil.copytree(
        ROOT / "kernels", sources, ignore=shutil.ignore_patterns("*.so", "build", "*.egg-info", "__pycache__")
    )
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        sources,
        "-w",
        tmp_path,
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("spdf_kernels-*-py3-none-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_bytes(archive.read(next(name for name in names if name.endswith("/METADATA"))))
    assert "spdf_kernels/libspdf_kernels.so" in names and "spdf_kernels/triton/kernels.py" in names
    assert not [name for name in names if "test" in name or name.endswith((".cpp", ".hpp"))]
    assert [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need] == ["torch>=2.11"]

    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path
    )
    (site,) = home.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")  # a path only, which hides our installation
    page = (ROOT / "docs" / "sparse_linear.md").read_text()
    (tmp_path / "example.py").write_text(
        page.split("```python\n")[1].split("```")[0] + "import spdf_kernels; print(spdf_kernels.__file__)\n"
    )
    printed = run(python, "example.py", cwd=tmp_path)
    assert "then dense" in printed
    assert printed.splitlines()[-1].startswith(str(site))
    assert (
        run(
            python,
            "-c",
            "from spdf_kernels import available_backends; print(available_backends()['portable'])",
            cwd=tmp_path,
        )
        == "None\n"
    )
