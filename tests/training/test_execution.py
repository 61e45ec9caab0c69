"""The choice of execution of a run: what execution.json keeps, and that a run which continues reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.parallel.groups import Groups
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.training.execution import decide
from spdf_dist.training.run_folder import RunFolder

MODEL = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=64)
PLACES = {"qkv", "projection", "expand", "contract"}
ALONE = Groups(0, 1, 0, 1, 0, 1, torch.device("cpu"))


def decided(folder: Path, wanted: str = "auto") -> dict[str, str]:
    masks = RandomMasks(MODEL, SparsityConfig(level=0.5))
    return decide(wanted, MODEL, masks, ALONE, RunFolder(folder), 16, torch.float32)


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
