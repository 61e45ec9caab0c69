"""The choice of execution of a run: execution.json records it, and a resumed run reads it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from spdf_kernels import Comparison, SparsityPattern
from spdf_kernels.backends import Description

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.parallel.groups import Groups
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.training import execution
from spdf_dist.training.execution import decide, measure
from spdf_dist.training.run_folder import RunFolder

MODEL = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=64)
PLACES = {"qkv", "projection", "expand", "contract"}
SINGLE_PROCESS = Groups(0, 1, 0, 1, 0, 1, torch.device("cpu"))


def decided(folder: Path, wanted: str = "auto", groups: Groups = SINGLE_PROCESS) -> dict[str, str]:
    sparsity = SparsityConfig(level=0.5, execution=wanted)
    config = PretrainConfig(model=MODEL, sparsity=sparsity)
    return decide(config, MODEL, RandomMasks(MODEL, sparsity), groups, RunFolder(folder), 16)


def test_auto_keeps_both_numbers_of_each_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "portable")
    layers = decided(tmp_path)
    record = json.loads((tmp_path / "execution.json").read_text())
    assert set(layers) == PLACES and record["layers"] == layers and set(record["measured"]) == PLACES
    for place, measured in record["measured"].items():
        assert measured["execution"] == layers[place] and measured["pairs"] >= 15
        fast = measured["speedup"] >= 1.0 and measured["speedup_lower"] >= 0.97
        assert (layers[place] == "compressed") == fast
    assert "0.97" in record["reason"]


def test_a_run_that_continues_reads_its_choice_and_keeps_the_numbers(tmp_path: Path) -> None:
    record = {
        "schema_version": 1,
        "layers": dict.fromkeys(sorted(PLACES), "compressed") | {"qkv": "masked"},
        "reason": "as measured then",
        "measured": {"qkv": {"speedup": 0.5}},
    }
    (tmp_path / "execution.json").write_text(json.dumps(record))
    assert decided(tmp_path) == record["layers"]
    assert json.loads((tmp_path / "execution.json").read_text()) == record


def test_the_config_decides(tmp_path: Path) -> None:
    assert decided(tmp_path, "masked") == dict.fromkeys(PLACES, "masked")
    assert json.loads((tmp_path / "execution.json").read_text())["measured"] == {}


def test_what_a_run_on_the_cpu_recorded_does_not_count_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"schema_version": 1, "layers": dict.fromkeys(sorted(PLACES), "compressed"), "reason": "", "measured": {}}
    (tmp_path / "execution.json").write_text(json.dumps(record))
    slow = Comparison("masked", "0.50x dense (>= 0.40)", 0.5, 0.4, 15, 64, 0)
    calls: list[Collection[str]] = []

    def measure(patterns: dict[str, SparsityPattern], *_: object) -> tuple[dict[str, Comparison], str]:
        calls.append(set(patterns))
        return dict.fromkeys(patterns, slow), ""

    monkeypatch.setattr(execution, "measure", measure)
    monkeypatch.setattr(execution, "on_device", lambda pattern, device: pattern)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    cuda = dataclasses.replace(SINGLE_PROCESS, device=torch.device("cuda"))
    assert decided(tmp_path, groups=cuda) == dict.fromkeys(PLACES, "masked")
    written = json.loads((tmp_path / "execution.json").read_text())
    assert written["device"] == "cuda" and "NVIDIA H200 between CUDA events" in written["reason"]
    assert "Triton" in written["reason"] and written["measured"]["qkv"]["speedup"] == 0.5
    assert decided(tmp_path, groups=cuda) == dict.fromkeys(PLACES, "masked") and calls == [PLACES]


@pytest.mark.parametrize(
    "content", ["{", '{"layers": 5}', '{"layers": {"qkv": "fast"}}', '{"layers": {}, "reason": 3}', "{}"]
)
def test_a_record_that_is_damaged_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "execution.json").write_text(content)
    with pytest.raises(UserError, match=r"execution\.json.*delete"):
        decided(tmp_path)


@pytest.mark.parametrize(
    ("budget_mb", "rows_lead", "expected"),
    [
        (400, False, {"a": "compressed", "b": "compressed"}),  # all code fits
        (250, False, {"a": "masked", "b": "compressed"}),  # only of b, the faster one; rows would be slower than dense
        (150, False, {"a": "masked", "b": "masked"}),
        (1, True, {"a": "compressed", "b": "compressed"}),  # not slower without any code
    ],
)
def test_code_beyond_the_budget_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, budget_mb: int, rows_lead: bool, expected: dict[str, str]
) -> None:
    patterns = {name: SparsityPattern.from_mask(torch.ones(4, 4, dtype=torch.bool)) for name in ("a", "b")}
    speed = {patterns["a"].handle: 1.5, patterns["b"].handle: 2.0}

    def compare(pattern: SparsityPattern, tokens: int, dtype: torch.dtype) -> Comparison:
        rows = os.environ.get("SPDF_KERNELS_BACKEND") in ("avx512", "portable")
        if rows and not rows_lead:
            return Comparison("masked", "", 0.9)
        return Comparison("compressed", "", speed[pattern.handle])

    monkeypatch.setattr(execution, "compare", compare)
    monkeypatch.setattr(execution, "describe", lambda *_: Description("jit", "jit", "avx512", 0, 100 * 2**20))
    found, how = measure(patterns, 2, 16, torch.float32, budget_mb)
    assert {name: comparison.execution for name, comparison in found.items()} == expected
    assert ("code_budget_mb" in how) == (budget_mb < 400)
