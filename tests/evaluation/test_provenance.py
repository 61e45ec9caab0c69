"""Records of the origin of generated texts and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spdf_dist.checkpoint.densify import densify
from spdf_dist.checkpoint.lineage import lineage
from spdf_dist.checkpoint.manifest import read_manifest
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.cli.main import main


def generate(checkpoint: Path, source: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ["generate", str(checkpoint), "--task", "e2e", "--input", str(source), "--out", str(out), "--greedy"]
    arguments += ["--max-new-tokens", "4", "--references-out", str(out.with_name("refs.txt")), *more]
    assert main(arguments) == 0
    return json.loads(out.with_name(f"{out.name}.provenance.json").read_text())


def evaluate(texts: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    arguments = ["--hypotheses", str(texts), "--references", str(texts.with_name("refs.txt")), "--json"]
    assert main(["evaluate", "--task", "e2e", *arguments]) == code
    told = capsys.readouterr()
    return json.loads(told.out) if told.out else {}, told.err


def test_generate_records_what_evaluate_passes_on(
    checkpoint: Path, e2e_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = generate(checkpoint, e2e_csv, tmp_path / "hyps.txt", "--split", "validation")
    assert summary["schema_version"] == 1 and summary["command"] == "generate"
    assert (summary["task"], summary["split"], summary["synthetic"]) == ("e2e", "validation", False)
    assert summary["settings"]["beams"] == 1 and summary["settings"]["max_new_tokens"] == 4
    assert summary["checkpoint"]["manifest_sha256"] == read_manifest(checkpoint).sha256
    assert summary["checkpoint"]["lineage"][0]["kind"] == "pretrain"
    scores, _ = evaluate(tmp_path / "hyps.txt", capsys)
    assert scores["split"] == "validation" and scores["provenance"] == summary


def test_texts_that_were_changed_have_no_origin(
    checkpoint: Path, e2e_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(checkpoint, e2e_csv, tmp_path / "hyps.txt")
    (tmp_path / "hyps.txt").write_text("The Mill is a pub .\nAromi is n't cheap .\n")
    scores, errors = evaluate(tmp_path / "hyps.txt", capsys)
    assert "provenance" not in scores and "describes other texts" in errors


def test_texts_of_another_task_are_refused(
    checkpoint: Path, e2e_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(checkpoint, e2e_csv, tmp_path / "hyps.txt")
    side = tmp_path / "hyps.txt.provenance.json"
    side.write_text(side.read_text().replace('"task": "e2e"', '"task": "dart"'))
    assert "answers the task dart, not e2e" in evaluate(tmp_path / "hyps.txt", capsys, code=2)[1]
    side.write_text("{")
    assert "is not a provenance record" in evaluate(tmp_path / "hyps.txt", capsys, code=2)[1]


def test_generated_data_are_known_by_their_content(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["data", "synthetic-e2e", "--out", str(tmp_path / "made"), "--seed", "1"]) == 0
    renamed = tmp_path / "real.csv"
    lines = (tmp_path / "made" / "testset_w_refs.csv").read_text().splitlines(keepends=True)
    renamed.write_text("".join(lines[:5]))
    assert generate(checkpoint, renamed, tmp_path / "hyps.txt")["synthetic"] is True


def test_perplexity_says_what_it_measured(checkpoint: Path, e2e_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(e2e_csv), "--task", "e2e", "--split", "train", "--json"]
    assert main(["perplexity", str(checkpoint), *arguments]) == 0
    summary = json.loads(capsys.readouterr().out)["provenance"]
    assert (summary["task"], summary["split"]) == ("e2e", "train")
    assert summary["checkpoint"]["manifest_sha256"] == read_manifest(checkpoint).sha256


def test_a_densified_checkpoint_knows_where_it_comes_from(checkpoint: Path, tmp_path: Path) -> None:
    dense = Checkpoint(densify(checkpoint, tmp_path / "dense").path)
    assert [entry["kind"] for entry in lineage(dense)] == ["densified", "pretrain"]
    assert lineage(dense)[1] == lineage(Checkpoint(checkpoint))[0]
