"""The example of docs/sparse_linear.md, exactly as on the page."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from spdf_kernels import SparseLinear

PAGE = Path(__file__).parents[2] / "docs" / "sparse_linear.md"


def test_the_example_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.count("SparseLinear(") == 2
    assert isinstance(names["sparse"][2], SparseLinear)
    assert names["dense_loss"] < names["sparse_loss"] < 0.5
    assert type(names["finetuned"][2]) is torch.nn.Linear
