"""The evidence study: rows, pairs by pre-training seed, verdicts, partial studies, and rows kept between runs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from made_up_runs import write_job, write_json, write_scores, write_study

from spdf_dist.cli.main import main
from spdf_dist.config.errors import UserError
from spdf_dist.report.results import read_results
from spdf_dist.report.scores import by_seed, minus
from spdf_dist.report.style import variant_colours
from spdf_dist.report.tables import score_tables
from spdf_dist.studies.evidence.claims import (
    CLAIMS,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    findings,
    judge,
    overall,
    paired,
    verdict,
)
from spdf_dist.studies.evidence.rows import CURVES, CurvePoint, Evidence, Row, read_evidence, to_csv
from spdf_dist.studies.evidence.rows import ROWS as EVIDENCE_ROWS
from spdf_dist.studies.evidence.section import (
    BEGIN,
    END,
    evidence_plots,
    evidence_tables,
    loss_lines,
    markdown,
    missing_text,
    page_with,
)

DENSE = [0.500, 0.520, 0.540]
CLOSE = [0.498, 0.519, 0.537]  # 0.2 BLEU points below, for every seed
FAR = [0.450, 0.471, 0.489]
UNTRAINED = [0.300, 0.310, 0.305]


def study_of(root: Path, bleu: dict[str, list[float]], planned: int = 3) -> Evidence:
    return read_evidence(read_results([write_study(root, bleu, planned)]), [])


def test_pairs_take_the_seed_s_own_noise_out() -> None:
    dense, ours = dict(enumerate(DENSE, 1)), dict(enumerate(CLOSE, 1))
    value = paired(minus(ours, dense))
    assert value is not None and value.count == 3
    assert value.mean == pytest.approx(-0.002) and value.deviation == pytest.approx(0.001)
    assert value.half_width == pytest.approx(4.303 * 0.001 / 3**0.5)
    assert minus({1: 0.5, 4: 0.1}, dense) == {1: 0.0}  # a seed without its partner does not count
    assert by_seed([(1, 0.4), (1, 0.6), (2, None), (3, float("nan"))]) == {1: 0.5}
    assert paired({}) is None


def test_the_rule() -> None:
    close, far = paired({1: -0.2, 2: -0.1, 3: -0.3}), paired({1: -5.0, 2: -4.9, 3: -5.1})
    wide = paired({1: -3.0, 2: 1.0, 3: -1.0})
    assert [judge(value, -1.0) for value in (close, far, wide)] == [SUPPORTED, NOT_SUPPORTED, UNDECIDED]
    assert judge(paired({1: 0.0}), -1.0) == UNDECIDED and judge(None, -1.0) == UNDECIDED
    assert overall([SUPPORTED, NOT_SUPPORTED, UNDECIDED]) == NOT_SUPPORTED
    assert overall([SUPPORTED, UNDECIDED]) == UNDECIDED and overall([SUPPORTED]) == SUPPORTED
    assert overall([]) == UNDECIDED


def test_hypotheses_on_a_whole_study(tmp_path: Path) -> None:
    evidence = study_of(
        tmp_path / "study",
        {
            "1m-dense": DENSE,
            "1m-s75": FAR,
            "1m-untrained": UNTRAINED,
            "4m-dense": DENSE,
            "4m-s75": CLOSE,
            "4m-untrained": UNTRAINED,
            "1m-s75-sparse": [0.40, 0.41, 0.42],
        },
    )
    assert evidence.sizes == ["1m", "4m"]
    rows = {row.key: row for row in evidence.rows}
    assert len(rows) == 21 and {row.state for row in rows.values()} == {"done"}
    row = rows["1m", "s75", 2, "dense"]
    assert (row.bleu, row.sparsity, row.finetuning_lr, row.lr) == (0.471, 0.75, 1e-3, 6e-4)
    assert row.e2e_val_loss == pytest.approx(2 - 0.471) and row.webnlg_val_loss == pytest.approx(3 - 2 * 0.471)
    assert rows["1m", "s75", 2, "sparse"].bleu == 0.41
    assert rows["1m", "untrained", 1, "dense"].tokens == 0
    first, second, third = CLAIMS
    assert [found.verdict for found in findings(evidence, first)] == [NOT_SUPPORTED, SUPPORTED]
    assert findings(evidence, first)[0].value.mean == pytest.approx(-5.0)  # type: ignore[union-attr]
    assert verdict(findings(evidence, first)) == NOT_SUPPORTED
    # WebNLG loses 2 x 0.05 nats where E2E loses 0.05.
    assert findings(evidence, second)[0].value.mean == pytest.approx(0.05)  # type: ignore[union-attr]
    assert [found.verdict for found in findings(evidence, second)] == [SUPPORTED, UNDECIDED]
    assert verdict(findings(evidence, second)) == UNDECIDED
    (found,) = findings(evidence, third)
    assert found.value is not None and found.value.mean == pytest.approx(4.8) and found.verdict == SUPPORTED


def test_without_the_control_nothing_is_concluded(tmp_path: Path) -> None:
    blind = study_of(tmp_path / "a", {"1m-dense": DENSE, "1m-s75": CLOSE})
    (found,) = findings(blind, CLAIMS[0])
    assert found.verdict == UNDECIDED and "has not run" in found.why
    idle = study_of(tmp_path / "b", {"1m-dense": DENSE, "1m-s75": CLOSE, "1m-untrained": DENSE})
    (found,) = findings(idle, CLAIMS[0])
    assert found.verdict == UNDECIDED and "not shown to beat" in found.why


def test_a_study_in_parts_says_what_has_not_run_and_keeps_its_rows(tmp_path: Path) -> None:
    bleu = {"1m-dense": DENSE[:1], "1m-s75": CLOSE[:1], "1m-untrained": []}
    evidence = study_of(tmp_path / "first", bleu)
    assert sum(row.state == "done" for row in evidence.rows) == 2
    assert "1m no pre-training, seeds 1, 2, 3: not run" in missing_text(evidence)
    assert all(found.verdict == UNDECIDED for claim in CLAIMS for found in findings(evidence, claim))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / EVIDENCE_ROWS).write_text(to_csv(evidence.rows, Row), encoding="utf-8")
    (kept / CURVES).write_text(to_csv(evidence.curves, CurvePoint), encoding="utf-8")
    again = read_evidence(read_results([kept]), [kept])
    assert again == evidence
    # Later, without the first folder: the plan lists seed 1 as not run, but its row is kept.
    other = write_study(tmp_path / "second", {"1m-dense": [], "1m-s75": []})
    write_study(tmp_path / "second", {"1m-dense": [0.5, 0.52], "1m-untrained": [0.3]})
    for name in ("1m-dense/seed=1", "1m-untrained/seed=1"):
        (other / "jobs" / "evaluate" / name / "manifest.json").unlink()
    both = {row.key: row for row in read_evidence(read_results([other]), [kept]).rows}
    assert both["1m", "s75", 1, "dense"].bleu == CLOSE[0] and both["1m", "dense", 1, "dense"].bleu == DENSE[0]
    assert both["1m", "dense", 2, "dense"].bleu == 0.52
    assert both["1m", "untrained", 1, "dense"].state == "pre-trained"
    (kept / EVIDENCE_ROWS).write_text("size,variant\nx,y,z\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"evidence\.csv"):
        read_evidence(read_results([kept]), [kept])


def test_a_size_of_which_nothing_has_run_is_not_the_smallest(tmp_path: Path) -> None:
    assert study_of(tmp_path, {"1m-dense": DENSE[:1], "4m-dense": []}).sizes == ["1m", "4m"]


def test_a_variant_s_place_does_not_depend_on_what_has_run(tmp_path: Path) -> None:
    evidence = study_of(tmp_path, {"1m-dense": DENSE, "1m-s50": CLOSE, "1m-s75": CLOSE[:1]})
    assert evidence.sparse_variants("1m") == ["s50", "s75"]


def test_runs_of_a_sweep_are_no_variant(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", {"1m-dense": DENSE, "1m-s75": CLOSE})
    study = read_results([root])
    assert {run.variant for run in study.pretraining} == {"1m-dense", "1m-s75"}
    assert len(study.finetuning) == 2 * len([run for run in study.pretraining])  # the selected run, and WebNLG
    assert all(run.tree["training"]["lr"] != 3e-3 for run in study.finetuning)


def test_scores_are_paired_by_the_pretraining_seed(tmp_path: Path) -> None:
    (table,) = [
        table
        for table in score_tables(read_results([write_study(tmp_path / "s", {"1m-dense": DENSE, "1m-s75": CLOSE})]))
        if table.name.startswith("scores-e2e")
    ]
    assert table.rows[1][1].endswith("−0.0020 ± 0.0010 to dense (3 pairs)")


def e2e_scores(root: Path) -> dict[str, str]:
    """The BLEU column of the report's table, by variant."""
    (table,) = [table for table in score_tables(read_results([root])) if table.name.startswith("scores-e2e")]
    return {row[0]: row[1].partition("\n")[0] for row in table.rows}


def test_a_seed_whose_selection_chose_otherwise_still_counts(tmp_path: Path) -> None:
    root = write_study(tmp_path / "s", {"1m-dense": DENSE, "1m-s75": CLOSE})
    chosen = "finetune/1m-s75/seed=2,lr=0.003"
    choice = root / "jobs" / "best" / "1m-s75" / "seed=2" / "out" / "choice.json"
    write_json(choice, {"schema_version": 1, "job": chosen})
    scores = root / "jobs" / "evaluate" / "1m-s75" / "seed=2" / "out" / "scores.json"
    write_scores(scores, root / "jobs" / chosen / "run", root / "jobs/pretrain/1m-s75/seed=2/run", bleu=CLOSE[1])
    assert e2e_scores(root)["1m-s75"] == f"{sum(CLOSE) / 3:.4f} ± 0.0195 (3)"


def test_settings_that_nothing_chose_are_not_averaged(tmp_path: Path) -> None:
    root = write_study(tmp_path / "s", {"1m-dense": DENSE, "1m-s75": CLOSE})
    place = root / "jobs" / "finetune" / "1m-s75" / "seed=2,lr=0.001" / "run" / "config.yaml"
    text = place.read_text(encoding="utf-8")
    place.write_text(text.replace("label_smoothing: 0.1", "label_smoothing: 0.3"), encoding="utf-8")
    scores = e2e_scores(root)
    assert scores["1m-s75, label_smoothing 0.3"] == "0.5190"
    assert scores["1m-s75, label_smoothing 0.1"] == "0.5175 ± 0.0276 (2)"


def test_the_sparse_control_is_never_the_variant(tmp_path: Path) -> None:
    """Its loss is the lower here."""
    root = write_study(tmp_path / "s", {"1m-dense": DENSE, "1m-s75": FAR, "1m-s75-sparse": [0.9, 0.91, 0.92]})
    scores = e2e_scores(root)
    assert list(scores) == ["1m-dense", "1m-s75", "1m-s75, fine-tuned sparse"]
    assert scores["1m-s75"].startswith("0.4700 ") and scores["1m-s75, fine-tuned sparse"].startswith("0.9100 ")


def test_page_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_study(tmp_path / "study", {"1m-dense": DENSE[:2], "1m-s75": FAR[:2], "1m-untrained": UNTRAINED[:2]}, 2)
    page = tmp_path / "docs" / "evidence.md"
    page.parent.mkdir()
    page.write_text(f"before\n{BEGIN}\nNot run yet.\n{END}\nafter\n", encoding="utf-8")
    out = page.parent / "evidence"
    command = ["report", str(root), "--out", str(out), "--markdown", str(page)]
    assert main(command) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith(f"{END}\nafter\n") and "Not run yet" not in text
    assert (
        "6 of 6 cells have run, of those that the plans so far name" in text
        and "(evidence/evidence_hypothesis_1.png)" in text
    )
    assert f"### Hypothesis 1: {verdict(findings(read_evidence(read_results([root]), []), CLAIMS[0]))}" in text
    assert {"evidence_loss_over_flops_1m.png", "evidence_loss_over_seconds_1m.png"} <= {p.name for p in out.iterdir()}
    with (out / EVIDENCE_ROWS).open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "Hypothesis 1" in (out / "index.html").read_text(encoding="utf-8")


def test_the_time_is_called_an_estimate(tmp_path: Path) -> None:
    evidence = study_of(tmp_path / "s", {"1m-dense": DENSE[:1]}, 1)
    (plot,) = [plot for plot in evidence_plots(evidence) if "seconds" in plot.name]
    assert "derived, not read from a clock" in plot.caption and "wall-clock" not in plot.caption
    (table,) = [table for table in evidence_tables(evidence) if table.name == "evidence_pretraining"]
    assert "derived, not read from a clock" in table.note


def test_the_second_hypothesis_names_the_scale_of_both_losses(tmp_path: Path) -> None:
    evidence = study_of(tmp_path / "s", {"1m-dense": DENSE, "1m-s75": CLOSE})
    notes = {table.name: table.note for table in evidence_tables(evidence)}
    dense = evidence.values("1m", "dense", "webnlg_val_loss")
    hard = f"{sum(value or 0 for _, value in dense) / len(dense):.2f} on WebNLG (1m)"
    assert hard in notes["evidence_hypothesis_2"] and "absolute nats" in notes["evidence_hypothesis_2"]
    assert "absolute nats" not in notes["evidence_hypothesis_1"]


def test_a_level_has_one_colour_in_all_figures(tmp_path: Path) -> None:
    evidence = study_of(tmp_path / "s", {"1m-dense": DENSE, "1m-b75": CLOSE, "1m-s75": CLOSE, "1m-stopped": FAR})
    over_flops = {line.label: line.colour for line in loss_lines(evidence, "1m", "flops")}
    assert over_flops["s75"] == variant_colours(["75%"])["75%"] != over_flops["b75"]
    names = ["1m-dense", "1m-stopped", "1m-b75", "1m-s75"]
    assert variant_colours(names)["1m-s75"] == over_flops["s75"]
    assert variant_colours([*names, "4m-s75"])["4m-s75"] == over_flops["s75"]
    assert variant_colours(names)["1m-b75"] == over_flops["b75"] == variant_colours(["dense", "b75"])["b75"]


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="--markdown"):
        page_with(page, "text")
    evidence = study_of(tmp_path / "s", {"1m-dense": DENSE[:1]}, 1)
    assert "1 of 1 cells" in markdown(evidence, "evidence", "spdf report")
    assert {plot.name for plot in evidence_plots(evidence)} == {
        "evidence_loss_over_flops_1m",
        "evidence_loss_over_seconds_1m",
    }


def test_cells_made_from_other_inputs_are_left_out_and_named(tmp_path: Path) -> None:
    root = write_study(tmp_path / "s", {"1m-dense": DENSE, "1m-s75": CLOSE})
    pretrain = root / "jobs" / "pretrain" / "1m-s75" / "seed=3" / "manifest.json"
    write_json(pretrain, {"status": "done", "key": "another"})
    evidence = read_evidence(read_results([root]), [])
    assert [row.seed for row in evidence.rows if row.variant == "s75"] == [1, 2]
    assert "evaluate/1m-s75/seed=3 (pretrain/1m-s75/seed=3 was made anew since)" in markdown(evidence, "figures", "")


def test_a_failed_cell_says_why(tmp_path: Path) -> None:
    root = write_study(tmp_path / "s", {"1m-dense": DENSE[:1], "1m-s75": []}, 1)
    pretrain = write_job(root, "pretrain/1m-s75/seed=1", "pretrain", [], "1m-s75", cell={"seed": "1"})
    write_json(pretrain / "manifest.json", {"status": "failed", "reason": "non-finite loss"})
    assert missing_text(read_evidence(read_results([root]), [])) == ["1m s75, seed 1: failed: non-finite loss"]


def test_a_fine_tuning_that_diverged_is_named_once_no_candidate_is_left(tmp_path: Path) -> None:
    root = write_study(tmp_path / "s", {"1m-dense": DENSE[:1], "1m-s75": CLOSE[:1]}, 1)
    where = "1m-s75/seed=1"
    ends = {"evaluate": ("cancelled", "a job that it needs failed"), "generate": ("cancelled", "best failed")}
    for name, (status, reason) in ends.items():
        write_json(root / "jobs" / name / where / "manifest.json", {"status": status, "reason": reason, "key": "key"})
    best = root / "jobs" / "best" / where
    (best / "out" / "choice.json").unlink()
    (best / "manifest.json").unlink()
    first, second = (root / "jobs" / "finetune" / f"{where},lr={lr}" / "manifest.json" for lr in (1e-3, 3e-3))
    write_json(second, {"status": "failed", "reason": "non-finite loss at step 9", "key": "key"})
    first.unlink()
    told = lambda: missing_text(read_evidence(read_results([root]), []))  # noqa: E731
    assert told() == ["1m 75%, seed 1: pre-trained"]  # the other rate may succeed
    write_json(first, {"status": "failed", "reason": "non-finite loss at step 7", "key": "key"})
    assert told() == ["1m 75%, seed 1: failed: non-finite loss at step 7"]
    write_json(best / "manifest.json", {"status": "failed", "reason": "no cell finished", "key": "key"})
    assert told() == ["1m 75%, seed 1: failed: non-finite loss at step 7"]
