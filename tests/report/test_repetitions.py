"""Repetitions of a variant in the report: pairs by pre-training seed, selections, and what is not averaged."""

from __future__ import annotations

from pathlib import Path

from made_up_runs import write_json, write_scores, write_study

from spdf_dist.report.results import read_results
from spdf_dist.report.style import variant_colours
from spdf_dist.report.tables import score_table

DENSE = [0.500, 0.520, 0.540]
CLOSE = [0.498, 0.519, 0.537]  # 0.2 BLEU points below, for every seed
FAR = [0.450, 0.471, 0.489]


def test_runs_of_a_sweep_are_no_variant(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", {"1m-dense": DENSE, "1m-s75": CLOSE})
    study = read_results([root])
    assert {run.variant for run in study.pretraining} == {"1m-dense", "1m-s75"}
    assert len(study.finetuning) == 2 * len([run for run in study.pretraining])  # the selected run, and WebNLG
    assert all(run.config.training.lr != 3e-3 for run in study.finetuning)


def test_scores_are_paired_by_the_pretraining_seed(tmp_path: Path) -> None:
    study = read_results([write_study(tmp_path / "s", {"1m-dense": DENSE, "1m-s75": CLOSE})])
    (table,) = [score_table(group) for group in study.score_groups() if group.task == "e2e"]
    assert table.rows[1]["BLEU ↑"].endswith("−0.0020 ± 0.0010 to dense (3 pairs)")


def e2e_scores(root: Path) -> dict[str, str]:
    """The BLEU column of the report's table, by variant."""
    (table,) = [score_table(group) for group in read_results([root]).score_groups() if group.task == "e2e"]
    return {row["variant"]: row["BLEU ↑"].partition("\n")[0] for row in table.rows}


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


def test_a_level_has_one_colour_in_all_figures() -> None:
    names = ["1m-dense", "1m-stopped", "1m-b75", "1m-s75"]
    colours = variant_colours(names)
    assert colours["1m-s75"] == variant_colours(["75%"])["75%"] != colours["1m-b75"]
    assert variant_colours([*names, "4m-s75"])["4m-s75"] == colours["1m-s75"]
    assert colours["1m-b75"] == variant_colours(["dense", "b75"])["b75"]
