"""The output of ``spdf bench``, for small products. Speed is not asserted."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spdf_dist.cli.main import main

TINY = ["--shape", "24x40", "--tokens", "32", "--rounds", "3", "--threads", "1", "--sparsity", "0.5", "0.75"]


def gemm(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["bench", "gemm", *arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_gemm_reports_every_product_of_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    data = gemm(capsys, *TINY)
    assert data["schema_version"] == 1
    assert {"cpu", "cores", "torch", "backends"} <= data["machine"].keys()
    found = {(r["op"], r["sparsity"]) for r in data["results"]}
    operations = ["forward", "dx", "dw", "forward_backward"]
    if "available" in (data["machine"]["backends"][name] for name in ("jit", "jit-avx2")):
        operations += ["forward_packed", "dx_packed"]
    assert found == {(op, s) for op in operations for s in (0.5, 0.75)}
    if data["machine"]["backends"]["avx512"] == "available":
        assert data["fed_gflops"]["L1"] > 0 and data["fed_gflops"]["L2"] > 0
    for result in data["results"]:
        assert (result["out"], result["in"], result["threads"], result["tokens"]) == (24, 40, 1, 32)
        assert result["median_ms"] > 0 and result["q1_ms"] <= result["median_ms"] <= result["q3_ms"]
        assert result["speedup_lower"] <= result["speedup"]
        best = result["dense"][result["best_dense"]]["median_ms"]
        assert best == min(d["median_ms"] for d in result["dense"].values())
        assert result["theoretical"] == pytest.approx(1 / (1 - result["sparsity"]))
        if result["op"] != "forward_backward":
            assert "libxsmm" in result["peers_missing"]
    assert {"compact", "generated"} <= data["state"][0].keys()


def test_gemm_bf16(capsys: pytest.CaptureFixture[str]) -> None:
    data = gemm(capsys, *TINY, "--dtype", "bf16", "--no-peers")
    assert {r["best_dense"] for r in data["results"] if r["op"] == "forward"} == {"torch_bf16"}
    assert not any(r["peers"] for r in data["results"])


def test_plot_writes_figure_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "made" / "speedup.svg"
    data = gemm(capsys, *TINY, "--plot", str(figure))
    assert figure.read_text().startswith("<svg")
    rows = list(csv.DictReader((tmp_path / "made" / "speedup.csv").open()))
    assert [(r["op"], r["sparsity"]) for r in rows] == [
        (op, s) for s in ("0.5", "0.75") for op in ("forward", "dx", "dw")
    ]
    by_case = {(r["op"], str(r["sparsity"])): r["speedup"] for r in data["results"]}
    assert all(float(r["speedup"]) == pytest.approx(by_case[r["op"], r["sparsity"]], rel=1e-3) for r in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "x.pdf"], ".png or .svg"),
        (["--plot", "x.png", "--shape", "4x4", "--shape", "8x4"], "one shape"),
        (["--plot", "x.png", "--shape", "4x4", "--threads", "1", "2"], "one thread count"),
        (["--model", "gpt2_smal"], "gpt2_small"),
    ],
)
def test_gemm_explains_bad_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gemm", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--shape", "768"], ["--sparsity", "1"], ["--tokens", "0"], ["--dtype", "fp16"]])
def test_gemm_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "gemm", *arguments])
    assert stopped.value.code == 2


def test_data_needs_tokenizer_and_text_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "data", "--path", "x", "--tokenizer", "t.model"]) == 2
    assert "--input" in capsys.readouterr().err


@pytest.mark.slow
def test_step_runs_every_execution() -> None:
    tiny = ["model.num_layers=1", "model.hidden_size=32", "model.num_attention_heads=2", "model.vocab_size=64"]
    command = [sys.executable, "-m", "spdf_dist", "bench", "step", "gpt2_small_s75", *tiny, "model.seq_length=16"]
    done = subprocess.run([*command, "--rounds", "2", "--threads", "1", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["schema_version"] == 1 and data["tokens"] == 32 and data["sparsity"] == 0.75
    results = data["results"]
    assert list(results) == ["compressed", "masked", "dense"]
    assert results["dense"]["speedup"] == 1.0 and results["dense"]["theoretical"] == 1.0
    linears = 12 * 32 * 32  # Q, K, V, D of 32 x 32, I and O of 128 x 32
    pruned = results["masked"]["parameters"] - results["compressed"]["parameters"]
    assert pruned == linears * 3 // 4
    assert results["masked"]["parameters"] == results["dense"]["parameters"]
    state = data["state"]
    assert state["patterns"] == 4  # Q, K and V share one
    assert state["compact"]["values_bytes"] == 16 * (linears - pruned) and state["compact"]["prepare_s"] > 0
    assert state["compact"]["of_dense"] == state["compact"]["bytes"] / (16 * linears)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity.level=0"], "nothing to compare"),
        (["parallel.tensor=2"], "one process"),
        (["model.hiden_size=8"], "hidden_size"),
    ],
)
def test_step_explains_bad_requests(overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "gpt2_small_s75", *overrides]) == 2
    assert message in capsys.readouterr().err


def test_gemm_shows_each_row_as_it_comes_and_ends_early_with_what_it_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from spdf_kernels import bench

    measure = bench.measure_gemm

    def interrupted_at_the_second(shape: tuple[int, int], sparsity: float, *rest: Any, **options: Any) -> Any:
        if sparsity == 0.75:
            raise KeyboardInterrupt
        return measure(shape, sparsity, *rest, **options)

    monkeypatch.setattr(bench, "measure_gemm", interrupted_at_the_second)
    tiny = [argument for argument in TINY if argument not in ("--rounds", "3")]
    assert main(["bench", "gemm", *tiny, "--quick", "--json"]) == 130
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert not data["complete"] and data["rounds"] == 3
    assert {r["sparsity"] for r in data["results"]} == {s["sparsity"] for s in data["state"]} == {0.5}
    assert not any(r["peers"] for r in data["results"])
    assert "2 cases take about" in captured.err and "stopped: 1 of 2 cases" in captured.err
    assert "[1/2] 24x40 50% 1 thread forward" in captured.err


def test_an_interrupt_before_the_first_case_has_nothing_to_print(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("spdf_kernels.bench.measure_gemm", interrupted)
    assert main(["bench", "gemm", *TINY]) == 130
    assert capsys.readouterr().out == ""
