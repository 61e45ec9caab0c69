"""``spdf generate`` on a small checkpoint."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_gpt import random_weights, transformers_model

from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.write import single_writer, whole
from spdf_dist.cli.main import main
from spdf_dist.config.schema import ModelConfig
from spdf_dist.data.tokenizer_training import train_sentencepiece
from spdf_dist.evaluation.checkpoint import load


def test_one_hypothesis_an_input_and_their_references(checkpoint: Path, e2e_csv: Path, tmp_path: Path) -> None:
    out, references = tmp_path / "out" / "hyps.txt", tmp_path / "out" / "refs.txt"
    arguments = ["generate", str(checkpoint), "--task", "e2e", "--input", str(e2e_csv), "--out", str(out)]
    arguments += ["--beam", "3", "--max-new-tokens", "8"]
    assert main([*arguments, "--references-out", str(references)]) == 0
    assert out.read_text().count("\n") == 2
    assert references.read_text() == "The Mill is a pub .\nA pub : The Mill .\n\nAromi is n't cheap .\n\n"
    first = out.read_bytes()
    assert main([*arguments, "--batch-size", "1"]) == 0
    assert out.read_bytes() == first
    assert sorted(path.name for path in out.parent.iterdir()) == ["hyps.txt", "hyps.txt.provenance.json", "refs.txt"]


def test_prompt_is_continued_on_stdout(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(checkpoint), "--prompt", "The Mill", "--greedy", "--max-new-tokens", "5"]) == 0
    greedy = capsys.readouterr().out
    assert greedy.endswith("\n") and greedy.strip()
    arguments = ["generate", str(checkpoint), "--prompt", "The Mill", "--sample", "--max-new-tokens", "5", "--seed"]
    drawn = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, seed]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


def test_text_that_stdout_cannot_encode_is_escaped(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = 0
    assert load(Checkpoint(checkpoint), None, "cpu").tokenizer.decode([unknown]).strip() == "\u2047"
    monkeypatch.setattr("spdf_dist.evaluation.generation.generate", lambda *_: [[unknown]])
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["generate", str(checkpoint), "--prompt", "The Mill"]) == 0
    stdout.seek(0)
    assert stdout.read().strip() == r"\u2047"


def test_greedy_prompt_is_what_transformers_continues(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    loaded = load(Checkpoint(checkpoint), None, "cpu")
    network = transformers_model(loaded.decoder.model, random_weights(loaded.decoder.model, seed=11, scale=0.2))
    ids = torch.tensor([loaded.tokenizer.encode("The Mill is")])
    end = loaded.tokenizer.eod_id
    output = network.generate(
        ids, attention_mask=torch.ones_like(ids), eos_token_id=end, pad_token_id=end, do_sample=False, max_new_tokens=40
    )
    assert main(["generate", str(checkpoint), "--prompt", "The Mill is", "--greedy", "--max-new-tokens", "40"]) == 0
    assert capsys.readouterr().out == loaded.tokenizer.decode(output[0, ids.shape[1] :].tolist()) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "e2e"], "--input, --out missing"),
        (["--task", "e3e", "--input", "x.csv", "--out", "y"], "unknown task 'e3e', did you mean 'e2e'?"),
        (["--task", "e2e", "--input", "missing.csv", "--out", "y"], "missing.csv does not exist"),
        (["--prompt", "x", "--out", "y"], "takes no --task"),
        (["--prompt", "x", "--sample", "--top-p", "0"], "--top-p 0.0"),
        (["--prompt", "The Mill " * 80], "context window 64"),
        (["--prompt", "x", "--sample", "--temperature", "nan"], "--temperature nan"),
        (["--prompt", "x", "--sample", "--temperature", "inf"], "--temperature inf"),
        (["--prompt", "x", "--sample", "--temperature", "1e-320"], "at least 1e-06"),
        (["--prompt", "x", "--length-penalty", "nan"], "--length-penalty nan"),
        (["--prompt", "x", "--beam", "2", "--length-penalty", "200"], "must be in [-10, 10]"),
        (["--prompt", "x", "--beam", "2", "--length-penalty=-200"], "--length-penalty -200.0"),
        (["--prompt", "caf\udce9"], "--prompt is not UTF-8 (character 3)"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(checkpoint), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("task", "out", "references", "message"),
    [
        ("e2e", ".", None, "is a folder"),
        ("e2e", "e2e.csv/hyps", None, "e2e.csv is a file, not a folder"),
        ("e2e", "h" * 300, None, "cannot be written"),
        ("e2e", "hyps", ".", "is a folder"),
        ("e2e", "e2e.csv", None, "e2e.csv is the input"),
        ("e2e", "hyps", "./e2e.csv", "e2e.csv is the input"),
        ("e2e", "same", "same", "would both write same"),
        ("dart", "refs/reference0", "refs", "would both write refs/reference0"),
        ("dart", "hyps", "e2e.csv", "e2e.csv is a file, not a folder"),
    ],
)
def test_outputs_that_cannot_be_written_are_named_before_decoding(
    e2e_csv: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    task: str,
    out: str,
    references: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(e2e_csv.parent)
    Path("dart.json").write_text('[{"tripleset": [["s", "r", "o"]], "annotations": [{"text": "x"}]}]')
    source = "e2e.csv" if task == "e2e" else "dart.json"
    arguments = ["generate", "no-checkpoint", "--task", task, "--input", source, "--out", out]
    assert main([*arguments, *(["--references-out", references] if references else [])]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["dart.json", "e2e.csv"]


@pytest.mark.parametrize("csv", ["mr\nname[A]\n", 'mr,ref\nname[B],x\nname[A],""\n'])
def test_references_of_a_file_that_lacks_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], csv: str) -> None:
    source = tmp_path / "x.csv"
    source.write_text(csv)
    arguments = ["--task", "e2e", "--input", str(source), "--out", str(tmp_path / "hyps")]
    assert main(["generate", "no-checkpoint", *arguments, "--references-out", str(tmp_path / "refs")]) == 2
    assert "the input 'name : A' has no reference" in capsys.readouterr().err


def test_hypotheses_are_kept_when_references_cannot_be_written(
    checkpoint: Path, e2e_csv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from spdf_dist.data.tasks import write

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "refs.txt")

    monkeypatch.setattr(write, "write_references", full)
    out = e2e_csv.with_name("hyps.txt")
    arguments = ["generate", str(checkpoint), "--task", "e2e", "--input", str(e2e_csv), "--out", str(out), "--greedy"]
    arguments += ["--max-new-tokens", "2", "--references-out", str(e2e_csv.with_name("refs.txt"))]
    assert main(arguments) == 1
    assert capsys.readouterr().err.endswith("refs.txt cannot be written: No space left on device\n")
    assert out.read_text().count("\n") == 2


def test_other_tokenizer_is_refused(checkpoint: Path, spdf_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(checkpoint), "--prompt", "x", "--tokenizer", str(spdf_data / "gpt2_vocab")]
    assert main(arguments) == 2
    assert "has 50257 words, the model" in capsys.readouterr().err


def test_another_tokenizer_that_fits_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_sentencepiece(["other words of another text\n" * 20 + "qwertyuiop"], 290, tmp_path / "t.model")
    for path, named in ((checkpoint / "tokenizer", False), (tmp_path / "t.model", True)):
        assert main(["generate", str(checkpoint), "--prompt", "x", "--tokenizer", str(path)]) == 0
        assert ("is not the tokenizer that" in capsys.readouterr().err) == named


def test_signal_leaves_nothing_half_written(checkpoint: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "many.csv", tmp_path / "hyps.txt"
    rows = [f'"name[The Mill {number}], eatType[pub]",The Mill.' for number in range(20000)]
    source.write_text("mr,ref\n" + "\n".join(rows) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "spdf_dist", "generate", str(checkpoint), "--task", "e2e"]
    process = subprocess.Popen(
        [*command, "--input", str(source), "--out", str(out), "--batch-size", "2"],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    seen = b""
    deadline = time.monotonic() + 120
    while b"input" not in seen and time.monotonic() < deadline:
        seen += os.read(process.stderr.fileno(), 4096)
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert b"SIGTERM" in rest and b"Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == ["many.csv"]


MODEL = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=64, vocab_size=300)


def write_checkpoint(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], words: Path) -> Path:
    weights = random_weights(MODEL, seed=11, scale=0.2)
    change(weights)
    return single_writer(folder, 3).write(
        (("model", whole(name, tensor), tensor) for name, tensor in weights.items()),
        masks=None,
        config_yaml="",
        tokenizer=words,
        manifest={"kind": "pretrain", "model": asdict(MODEL), "sparsity": None, "consumed_tokens": 0},
    )


def all_nan(weights: dict[str, torch.Tensor]) -> None:
    for tensor in weights.values():
        tensor.fill_(torch.nan)


def one_infinity(weights: dict[str, torch.Tensor]) -> None:
    weights["layers.1.W_O"][3, 5] = -torch.inf


def huge(weights: dict[str, torch.Tensor]) -> None:
    for name in ("layers.0.W_O", "layers.0.W_I", "layers.1.W_Q"):
        weights[name].fill_(3e38)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (all_nan, 2, "values of embedding.word are not finite"),
        (one_infinity, 2, "1 of 4,096 values of layers.1.W_O"),
        (huge, 3, "outputs are NaN"),
    ],
)
@pytest.mark.parametrize("command", ["prompt", "greedy", "task", "perplexity"])
def test_weights_that_are_not_finite_are_an_error(  # type: ignore[no-untyped-def]
    command: str, change, code: int, said: str, tmp_path: Path, tokenizer_file: Path, e2e_csv: Path, capsys
) -> None:
    folder = write_checkpoint(tmp_path / "step_3", change, tokenizer_file)
    (tmp_path / "t.txt").write_text("The Mill is a pub")
    words = {
        "prompt": ["generate", str(folder), "--prompt", "The Mill", "--beam", "2", "--max-new-tokens", "3"],
        "greedy": ["generate", str(folder), "--prompt", "The Mill", "--greedy", "--max-new-tokens", "3"],
        "task": ["generate", str(folder), "--task", "e2e", "--input", str(e2e_csv), "--out", str(tmp_path / "h")],
        "perplexity": ["perplexity", str(folder), "--data", str(tmp_path / "t.txt"), "--json"],
    }[command]
    assert main(words) == code
    out, error = capsys.readouterr()
    assert out == "" and said in error.splitlines()[-1] and not (tmp_path / "h").exists()
