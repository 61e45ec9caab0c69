"""The code of docs/extending.md, installed as one package and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/extending.md"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the page's modules and entry points as `pip install` does."""
    text = PAGE.read_text(encoding="utf-8")
    site = tmp_path_factory.mktemp("site")
    for name, source in re.findall(r'```python title="(\w+\.py)"\n(.*?)```', text, re.DOTALL):
        (site / name).write_text(source)
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    project = tomllib.loads(settings)["project"]
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    return os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *words: str) -> str:
    """Standard output of a command that succeeds."""
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pattern_makes_its_masks(environment: dict[str, str]) -> None:
    words = ("flops", "cpu_1m", "sparsity.level=0.75", "sparsity.pattern=band")
    assert "at 0.75 band" in run(environment, "-m", "spdf_dist", *words)
    code = (
        "from spdf_dist.config.schema import SparsityConfig\n"
        "from spdf_dist.sparsity.masks import make_mask\n"
        "mask = make_mask('layers.0.W_Q', (8, 8), SparsityConfig(level=0.75, pattern='band'))\n"
        "print(mask.sum(axis=1).tolist())"
    )
    assert run(environment, "-c", code).strip() == str([2] * 8)


def test_the_task_is_scored(environment: dict[str, str], tmp_path: Path) -> None:
    texts, references = tmp_path / "texts.txt", tmp_path / "references.txt"
    texts.write_text("a red door\none house\n")
    references.write_text("a door\na house\n")
    words = ("--task", "captions", "--hypotheses", str(texts), "--references", str(references), "--json")
    assert json.loads(run(environment, "-m", "spdf_dist", "evaluate", *words))["mean_words"] == 2.5


def test_the_back_end_runs_what_it_supports(environment: dict[str, str]) -> None:
    code = (
        "import torch\nfrom spdf_kernels import SparsityPattern, describe, sparse_linear\n"
        "mask = torch.rand(8, 12) < 0.5\npattern = SparsityPattern.from_mask(mask)\n"
        "weight, x = torch.randn(8, 12) * mask, torch.randn(5, 12)\n"
        "y = sparse_linear(x, pattern.compress(weight), pattern)\n"
        "assert torch.allclose(y, x @ weight.t(), atol=1e-5)\n"
        "print(describe(pattern).forward, describe(SparsityPattern.from_mask(torch.rand(9, 12) < 0.5)).forward)"
    )
    first, second = run(environment, "-c", code).split()
    assert first == "rows" and second != "rows"
