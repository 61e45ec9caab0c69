"""``spdf perplexity``, compared with explicit sums of log-probabilities."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.cli.main import main
from spdf_dist.evaluation.checkpoint import Loaded, load
from spdf_dist.evaluation.perplexity import Likelihood

TEXTS = ["The Mill is a pub in riverside. ", "Aromi serves food", "near The Mill, price cheap " * 12]


@pytest.fixture
def loaded(checkpoint: Path) -> Loaded:
    return load(Checkpoint(checkpoint), None, "cpu")


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def stream(loaded: Loaded) -> list[int]:
    end = loaded.tokenizer.eod_id
    return [end] + [token for text in TEXTS for token in [*loaded.tokenizer.encode(text), end]]


def nats(loaded: Loaded, ids: list[int], first: int = 1) -> float:
    """Negative log-likelihood of the tokens from ``first`` on, given all tokens before them."""
    log_probs = loaded.decoder.logits(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    return -sum(float(log_probs[at - 1, ids[at]]) for at in range(first, len(ids)))


def measured(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["perplexity", *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_text_is_cut_into_windows(
    checkpoint: Path, loaded: Loaded, jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured([str(checkpoint), "--data", str(jsonl)], capsys)
    ids = stream(loaded)
    window = loaded.decoder.model.seq_length
    assert len(ids) > 2 * window
    expected = sum(nats(loaded, ids[at : at + window + 1]) for at in range(0, len(ids) - 1, window))
    words = sum(len(text.split()) for text in TEXTS)
    assert (found["schema_version"], found["tokens"], found["words"]) == (1, len(ids) - 1, words)
    assert found["perplexity"] == pytest.approx(math.exp(expected / (len(ids) - 1)), rel=1e-5)
    assert found["perplexity_per_word"] == pytest.approx(math.exp(expected / words), rel=1e-5)


def test_packed_folder_gives_what_its_text_gives(
    checkpoint: Path, loaded: Loaded, jsonl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "pack", "--input", str(jsonl), "--tokenizer", str(checkpoint / "tokenizer")]
    assert main([*arguments, "--out", str(tmp_path / "packed"), "--seq-len", "16"]) == 0
    capsys.readouterr()
    found = measured([str(checkpoint), "--data", str(tmp_path / "packed")], capsys)
    # Packing begins with the first token of the first document, and drops the incomplete last sequence.
    ids = stream(loaded)[1:]
    ids = ids[: (len(ids) - 1) // 16 * 16 + 1]
    window = loaded.decoder.model.seq_length
    expected = sum(nats(loaded, ids[at : at + window + 1]) for at in range(0, len(ids) - 1, window))
    assert found["tokens"] == len(ids) - 1
    assert found["loss"] == pytest.approx(expected / (len(ids) - 1), rel=1e-5)
    text = "".join(text + " " for text in "".join(TEXTS).split("\0"))
    assert abs(found["words"] - len(text.split())) <= 4


def test_task_predicts_targets_alone(
    checkpoint: Path, loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "curation.csv"
    path.write_text('headline,summary,article_content\nx,The Mill,"A pub\nin riverside"\ny,,empty\nz,Aromi food,near\n')
    found = measured([str(checkpoint), "--data", str(path), "--task", "curation"], capsys)
    end, encode = loaded.tokenizer.eod_id, loaded.tokenizer.encode
    expected = 0.0
    tokens = 0
    for context, target in (("A pub in riverside", "The Mill"), ("near", "Aromi food")):
        prompt = [*encode(context), end]
        answer = [*encode(" " + target), end]
        expected += nats(loaded, prompt + answer, first=len(prompt))
        tokens += len(answer)
    assert (found["tokens"], found["words"]) == (tokens, 4)
    assert found["loss"] == pytest.approx(expected / tokens, rel=1e-5)


def test_targets_that_are_missing_are_not_measured(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test file without references gave the perplexity of saying nothing."""
    path = tmp_path / "test.csv"
    path.write_text("mr\nname[Aromi]\n")
    arguments = ["perplexity", str(checkpoint), "--task", "e2e", "--split", "test", "--data", str(path)]
    assert main(arguments) == 2
    assert "each of its 1 examples has an empty text; there is no target" in capsys.readouterr().err
    path.write_text("mr,ref\nname[Aromi],It is Aromi.\nname[Aromi],\n")
    assert main(arguments) == 0
    both = capsys.readouterr()
    assert "left out 1 example with an empty text" in both.err and " 4 words" in both.out


def test_quoted_patterns_stand_for_files(checkpoint: Path, jsonl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = measured([str(checkpoint), "--data", str(jsonl)], capsys)
    assert measured([str(checkpoint), "--data", f"{jsonl.parent}/text*.jsonl"], capsys) == plain


def test_broken_lines_are_named_and_left_out(checkpoint: Path, jsonl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = measured([str(checkpoint), "--data", str(jsonl)], capsys)
    with jsonl.open("a") as file:
        file.write("{broken\n")
    assert main(["perplexity", str(checkpoint), "--data", str(jsonl), "--json"]) == 1
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["unusable_lines"], found["loss"]) == (1, whole["loss"])
    assert "texts.jsonl" in output.err and "4" in output.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["missing.txt"], "--data missing.txt does not exist"),
        (["missing.txt", "."], "not both at once"),
        (["a.csv", "b.csv", "--task", "curation"], "takes one file"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path, data: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["perplexity", str(checkpoint), "--data", *data]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_empty_documents_count_as_little_as_in_packing(
    checkpoint: Path, jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = measured([str(checkpoint), "--data", str(jsonl)], capsys)
    empty = json.dumps({"text": ""}) + "\n"
    jsonl.write_text(empty + jsonl.read_text().replace("\n", f"\n{empty}"))
    assert measured([str(checkpoint), "--data", str(jsonl)], capsys) == whole
    text = jsonl.with_suffix(".txt")
    text.write_text("The Mill\n")
    assert measured([str(checkpoint), "--data", str(text)], capsys)["words"] == 2
    jsonl.write_text(empty * 3)
    assert main(["perplexity", str(checkpoint), "--data", str(jsonl)]) == 2
    error = capsys.readouterr().err
    assert "holds no text" in error and error.count("\n") == 1


def test_a_loss_beyond_floats_is_infinite_and_null_in_json(
    checkpoint: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = Likelihood(nats=710.0, tokens=1, words=1)
    assert hopeless.per_token == hopeless.per_word == math.inf
    monkeypatch.setattr("spdf_dist.evaluation.perplexity.stream_likelihood", lambda *_: hopeless)
    found = measured([str(checkpoint), "--data", str(jsonl)], capsys)
    assert (found["loss"], found["perplexity"], found["perplexity_per_word"]) == (710.0, None, None)
