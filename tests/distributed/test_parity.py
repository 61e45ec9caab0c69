"""Every topology, ZeRO stage and execution trains as a plain single-process model does."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from launch import run_ranks
from parity_job import reference

JOB = str(Path(__file__).parent / "parity_job.py")
TOLERANCE = 1e-4
BF16_TOLERANCE = 2e-2
"""bf16 has 8 significant bits. A rounding is 0.4%, and losses and norms accumulate several."""


@cache
def expected(level: float = 0.75, kind: str = "gpt2", momentum: float | None = None) -> dict:
    return reference(level, kind, momentum)


def train_cases(cases: list[dict], ranks: int, folder: Path) -> list[dict]:
    output = run_ranks([JOB, json.dumps(cases)], ranks, folder)
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def check(result: dict, wanted: dict, tolerance: float) -> None:
    assert result["losses"] == pytest.approx(wanted["losses"], rel=tolerance), result["case"]
    assert result["norms"] == pytest.approx(wanted["norms"], rel=tolerance), result["case"]
    assert result["pruned"] == 0, result["case"]


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "tensors"), [(1, (1,)), (2, (2, 1)), (4, (2,))])
def test_every_topology_stage_and_execution_equals_one_process(ranks, tensors, tmp_path):
    cases = [
        {"tensor": tensor, "zero": zero, "execution": execution}
        for tensor in tensors
        for zero in (0, 1, 2)
        for execution in ("masked", "compressed")
    ]
    results = train_cases(cases, ranks, tmp_path)
    assert len(results) == len(cases)
    for result in results:
        check(result, expected(), TOLERANCE)
    # Optimizer groups follow the role of a tensor, so that they are equal although compressed weights are vectors.
    assert {json.dumps(result["groups"]) for result in results[:2]} == {json.dumps(results[0]["groups"])}
    assert any(name.endswith("W_Q") for name in results[1]["groups"][0])
    assert all(".b_" in name or "ln_" in name for name in results[1]["groups"][1])


@pytest.mark.distributed
def test_bf16_accumulation_recomputation_and_dense(tmp_path):
    cases = [
        {"tensor": 1, "zero": 1, "execution": "masked", "precision": "bf16"},
        {"tensor": 1, "zero": 2, "execution": "compressed", "precision": "bf16"},
        {"tensor": 2, "zero": 1, "execution": "compressed", "precision": "bf16"},
        {"tensor": 1, "zero": 1, "execution": "masked", "precision": "bf16", "micro": 8},
        {"tensor": 1, "zero": 1, "execution": "compressed", "micro": 1},
        {"tensor": 2, "zero": 1, "execution": "compressed", "recompute": True},
        {"tensor": 2, "zero": 1, "execution": "masked", "level": 0.0},
    ]
    results = train_cases(cases, 2, tmp_path)
    for result in results[:4]:
        check(result, expected(), BF16_TOLERANCE)
    # Gradients are summed in fp32: 1 and 2 micro-batches per rank differ far less than with bf16 rounding.
    few, many = results[3], results[0]
    assert many["norms"][0] == pytest.approx(few["norms"][0], rel=2e-3)
    check(results[4], expected(), TOLERANCE)  # 16 micro-batches
    check(results[5], expected(), TOLERANCE)
    check(results[6], expected(0.0), TOLERANCE)


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "tensors"), [(1, (1,)), (2, (2, 1)), (4, (2,))])
def test_llama_equals_one_process(ranks, tensors, tmp_path):
    cases = [
        {"tensor": tensor, "zero": zero, "execution": execution, "model": kind}
        for tensor in tensors
        for zero, execution, kind in (
            (0, "masked", "llama"),
            (1, "compressed", "llama"),
            (2, "compressed", "llama_scaled"),
            (1, "masked", "llama_scaled"),
        )
    ]
    cases.append({"tensor": tensors[0], "zero": 1, "execution": "compressed", "model": "llama", "recompute": True})
    cases.append({"tensor": tensors[0], "zero": 1, "execution": "masked", "model": "llama_scaled", "level": 0.0})
    for result in train_cases(cases, ranks, tmp_path):
        case = result["case"]
        check(result, expected(case.get("level", 0.75), case["model"]), TOLERANCE)
        assert all("ln_" in name for name in result["groups"][1])
    bf16 = {"tensor": tensors[0], "zero": 1, "execution": "compressed", "model": "llama", "precision": "bf16"}
    (result,) = train_cases([bf16], ranks, tmp_path / "bf16")
    check(result, expected(0.75, "llama"), BF16_TOLERANCE)


@pytest.mark.distributed
def test_sequence_parallel_equals_one_process(tmp_path):
    cases = [
        {"tensor": 2, "zero": 0, "execution": "masked", "model": "gpt2"},
        {"tensor": 2, "zero": 1, "execution": "compressed", "model": "gpt2", "recompute": True},
        {"tensor": 2, "zero": 2, "execution": "compressed", "model": "llama_scaled"},
        {"tensor": 2, "zero": 1, "execution": "masked", "model": "llama"},
    ]
    for result in train_cases([case | {"sequence": True} for case in cases], 2, tmp_path):
        check(result, expected(0.75, result["case"]["model"]), TOLERANCE)


@pytest.mark.distributed
def test_with_divided_tokens_ranks_drop_alike_what_both_hold_and_apart_what_each_holds(tmp_path):
    output = run_ranks([str(Path(__file__).parent / "dropout_job.py")], 2, tmp_path)
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    results = json.loads(line.removeprefix("RESULT "))
    for family in ("gpt2", "llama"):
        plain, recomputed = results[f"{family} False"], results[f"{family} True"]
        zero, one = plain["ranks"]
        kinds = [(kind, shape[0]) for kind, shape, _ in zero["events"]]
        layer = [("attention", 8), ("dropout", 8), ("dropout", 8)]  # of 8 sequences, and of 8 tokens of 16
        assert kinds == [("dropout", 16), *layer, *layer]  # the embedding's dropout sees all tokens
        same = [mine[2] == others[2] for mine, others in zip(zero["events"], one["events"], strict=True)]
        assert same == [True, *[False] * 6]
        assert len({event[2] for rank in (zero, one) for event in rank["events"]}) == 13  # no stream is used twice
        assert zero["common"] == one["common"] and zero["replicated"] == one["replicated"]
        assert zero["replicated"]
        assert (recomputed["losses"], recomputed["norms"]) == (plain["losses"], plain["norms"])
        for again, rank in zip(recomputed["ranks"], (zero, one), strict=True):
            assert again["replicated"] == rank["replicated"]
            assert again["events"][:7] == rank["events"] and len(again["events"]) > 7
            assert {tuple(map(str, event)) for event in again["events"]} == {tuple(map(str, e)) for e in rank["events"]}


MUON = {
    2: [
        {"tensor": 2, "zero": 0, "execution": "masked"},
        {"tensor": 2, "zero": 1, "execution": "compressed", "model": "llama"},
        {"tensor": 2, "zero": 1, "execution": "masked", "level": 0.0},
    ],
    # The partitions of four data ranks end within a matrix.
    4: [
        {"tensor": 2, "zero": 1, "execution": "compressed"},
        {"tensor": 1, "zero": 1, "execution": "masked"},
        {"tensor": 1, "zero": 2, "execution": "compressed", "model": "llama_scaled"},
        {"tensor": 1, "zero": 1, "execution": "compressed", "precision": "bf16"},
    ],
}


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 4])
def test_muon_equals_one_process(ranks, tmp_path):
    for result in train_cases([case | {"optimizer": "muon"} for case in MUON[ranks]], ranks, tmp_path):
        case = result["case"]
        wanted = expected(case.get("level", 0.75), case.get("model", "gpt2"), 0.95)
        check(result, wanted, BF16_TOLERANCE if "precision" in case else TOLERANCE)


STAGE_3 = {
    2: [
        {"tensor": 1, "execution": "masked"},
        {"tensor": 1, "execution": "compressed", "model": "llama", "recompute": True},
        {"tensor": 1, "execution": "masked", "precision": "bf16"},
    ],
    4: [
        {"tensor": 2, "execution": "compressed", "micro": 2},
        {"tensor": 2, "execution": "masked", "model": "llama_scaled", "sequence": True},
    ],
}


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 4])
def test_stage_3_equals_one_process(ranks, tmp_path):
    for result in train_cases([case | {"zero": 3} for case in STAGE_3[ranks]], ranks, tmp_path):
        case = result["case"]
        wanted = expected(0.75, case.get("model", "gpt2"))
        check(result, wanted, BF16_TOLERANCE if "precision" in case else TOLERANCE)
