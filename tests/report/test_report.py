"""The report end to end on synthetic folders, and cases in which it could show a wrong number."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import (
    STEPS,
    VARIANTS,
    finetune_run,
    paper_run,
    pretrain_run,
    write_chain,
    write_job,
    write_json,
    write_scores,
)

from spdf_dist.base.numbers import power_label
from spdf_dist.cli.main import main
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import FinetuneConfig, TaskConfig
from spdf_dist.report.estimates import estimate
from spdf_dist.report.page import Table
from spdf_dist.report.plots import cost_plots, finetuning_plots
from spdf_dist.report.results import Results, read_results
from spdf_dist.report.runs import Run, read_run
from spdf_dist.report.scores import published_scale
from spdf_dist.report.speedups import largest_square, speedup_points
from spdf_dist.report.style import drawing, variant_colours
from spdf_dist.report.tables import finetuning_text, score_table, summary_table
from spdf_dist.report.write import cards, result_sections
from spdf_dist.studies.paper.printed import our_estimate
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.workflow_folder import all_jobs, ancestors, job_of, read_job, selections


def report(folders: list[Path], out: Path) -> Path:
    """The page of ``spdf report``."""
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    return out / "index.html"


def score_tables(study: Results) -> list[Table]:
    return [score_table(group) for group in study.score_groups()]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_page_of_a_workflow_is_whole_and_needs_no_network(workflow: Path, tmp_path: Path) -> None:
    page = report([workflow], tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert page.name == "index.html"
    for word in (
        "Training loss over tokens",
        "Training loss over time",
        "Validation loss",
        "BLEU",
        "FLOPs spent",
    ):
        assert word in text
    assert not re.search(r"(?:src|href)=\"(?!#)", re.sub(r"xlink:href=\"#[^\"]*\"", "", text))
    assert "url(http" not in text and "@import" not in text and "<script" not in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"loss_over_tokens.png", "loss_over_time.png", "validation_over_tokens.png", "flops_spent.png"} <= names
    assert not [name for name in names if name.endswith(".tmp")]


def test_generated_data_are_called_synthetic_wherever_they_show(workflow: Path, tmp_path: Path) -> None:
    text = report([workflow], tmp_path / "out").read_text(encoding="utf-8")
    assert "data in this report are synthetic" in text
    assert "Scores on synthetic data in the form of E2E" in text
    assert "E2E, 1.07M parameters (synthetic data)" in text  # in the figure
    scores = rows_of(next((tmp_path / "out").glob("scores-*.csv")))
    assert {row["data"] for row in scores} == {"synthetic"}


def test_scores_of_generated_data_are_not_set_beside_the_papers(tmp_path: Path) -> None:
    for name, data in (("real", "data/e2e/trainset.csv"), ("made", "data/synthetic/trainset.csv")):
        config = paper_run(tmp_path / name / "pre", 0.75)
        made = name == "made"
        finetune_run(tmp_path / name / "fine", tmp_path / name / "pre", data, config, synthetic=made)
        scores = tmp_path / name / "fine" / "scores.json"
        write_scores(scores, tmp_path / name / "fine", tmp_path / name / "pre", synthetic=made, bleu=0.665)
        report([tmp_path / name], tmp_path / name / "out")
    cells = {name: rows_of(tmp_path / name / "out" / "paper_table_4.csv")[2]["BLEU ↑"] for name in ("real", "made")}
    assert cells == {"real": "66.50 ± 0.01; ours 66.50, +0.00", "made": "66.50 ± 0.01; not run"}


def test_only_what_the_paper_did_is_set_beside_it(tmp_path: Path) -> None:
    made: dict[str, tuple[float, float, dict[str, Any]]] = {
        "dense": (0.67, 0.0, {}),
        "untrained": (0.10, 0.0, {"tokens": 0}),
        "stopped": (0.11, 0.0, {"tokens": 1_515_000_000}),
        "cut": (0.12, 0.0, {"whole": False}),
        "s75": (0.66, 0.75, {}),
        "b75": (0.13, 0.75, {"pattern": "block:16"}),
        "some": (0.14, 0.75, {"targets": ["W_I", "W_O"]}),
        "scaled": (0.15, 0.75, {"init_scale": "fan_in"}),
        "sparse": (0.16, 0.75, {}),
    }
    for name, (bleu, level, settings) in made.items():
        config = paper_run(tmp_path / name / "pre", level, **settings)
        sparse = name == "sparse"
        tuned = tmp_path / name / "fine"
        finetune_run(tuned, tmp_path / name / "pre", "e2e/trainset.csv", config, keep_mask=sparse, gap=-sparse)
        write_scores(tuned / "scores.json", tuned, tmp_path / name / "pre", bleu=bleu)
    study = read_results([tmp_path])
    assert len(study.scores) == len(made)
    ours = {level: our_estimate(study, "e2e", ("GPT-2 Small", level), "bleu") for level in (0.0, 0.75)}
    assert [value and (value.mean, value.count) for value in ours.values()] == [(67.0, 1), (66.0, 1)]


def test_variants_flops_and_differences_to_dense(workflow: Path) -> None:
    study = read_results([workflow])
    assert study.variants == ["untrained", "dense", "s75"]
    rows = {row["variant"]: row for row in summary_table(study).rows}
    assert set(rows) == set(VARIANTS)
    flops = {run.variant: run.last("flops") for run in study.pretraining}
    assert rows["s75"]["pre-training FLOPs"].endswith(f"{flops['s75'] / flops['dense']:.3f}x dense")
    assert rows["s75"]["validation loss"].endswith("+0.080 to dense")
    assert "25% kept" in rows["s75"]["linear weights"]
    assert "590k reactivated, norm 1.25" in rows["s75"]["fine-tuned, validation loss"]
    (table,) = score_tables(study)
    assert (table.rows[2]["variant"], table.rows[2]["BLEU ↑"]) == ("s75", "0.5940\n−0.0160 to dense")


def test_report_job_gets_the_folders_of_the_jobs_it_needs(workflow: Path) -> None:
    """As the launcher calls it: without the workflow root, with evaluations but not their runs."""
    folders = [workflow / "jobs" / "evaluate" / name for name in VARIANTS]
    study = read_results(folders)
    assert len(study.pretraining) == len(study.finetuning) == len(VARIANTS)
    assert {score.run.variant for score in study.scores} == set(VARIANTS)
    assert all(score.synthetic and score.run.size() == "1.07M" for score in study.scores)
    assert study.workflows == [workflow]


def test_kernel_measurements_become_figure_1(tmp_path: Path) -> None:
    results = [
        {"out": out, "in": 64, "sparsity": level, "threads": threads, "op": op, "speedup": 1 / (1 - level)}
        for out in (64, 256)
        for level in (0.5, 0.9)
        for threads in (1, 2)
        for op in ("forward", "dx", "forward_backward")
    ]
    bench = {"schema_version": 1, "machine": {"cpu": "a processor"}, "threads": 2, "results": results}
    write_json(tmp_path / "gemm.json", bench)
    lines = speedup_points(largest_square(bench))
    assert {op: [x for x, _ in points] for op, points in lines.items()} == {"forward": [50.0, 90.0], "dx": [50.0, 90.0]}
    text = report([tmp_path / "gemm.json"], tmp_path / "out").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "figure_1.png").is_file() and "a processor" in text


def test_a_manifest_with_metrics_is_not_a_second_score(workflow: Path) -> None:
    assert sorted(score.metrics["bleu"] or 0 for score in read_results([workflow]).scores) == [0.41, 0.594, 0.61]


def test_a_select_job_leads_to_what_it_chose(tmp_path: Path) -> None:
    root = tmp_path / "flow"
    for cell in ("lr=1e-4", "lr=1e-3"):
        write_job(root, f"finetune/dense/{cell}", "finetune", [], "dense")
    needs = ["finetune/dense/lr=1e-4", "finetune/dense/lr=1e-3"]
    select = write_job(root, "select/dense", "select", needs, "dense")
    write_json(select / "out" / "choice.json", {"schema_version": 1, "job": "finetune/dense/lr=1e-3"})
    write_job(root, "evaluate/dense", "evaluate", ["select/dense"], "dense")
    job = read_job(root, "evaluate/dense")
    assert job is not None
    assert [parent.id for parent in ancestors(job)] == ["select/dense", "finetune/dense/lr=1e-3"]
    assert {job.id for job in all_jobs(root)} == {*needs, "select/dense", "evaluate/dense"}
    assert job_of(select / "out" / "choice.json") == read_job(root, "select/dense")


def test_validation_scores_that_select_are_no_results(tmp_path: Path) -> None:
    """Jobs as in the shipped paper workflows: settings are those of `select`, and scores are those of the test set."""
    study = read_results([write_chain(tmp_path / "flow")])
    assert sorted({score.metrics["bleu"] for score in study.scores}) == [0.51, 0.52, 0.53]
    assert {score.split for score in study.scores} == {"test"}
    (table,) = score_tables(study)
    assert [row["BLEU ↑"].partition("\n")[0] for row in table.rows] == ["0.5200 ± 0.0100 (3)"] * 2
    assert {run.path.parts[-4] for run in study.finetuning} == {"final"}  # three seeds of one setting
    assert all(run.config.training.lr == 5e-5 for run in study.finetuning)


def test_what_was_chosen_for_fine_tuning_is_told_from_what_was_for_pre_training(tmp_path: Path) -> None:
    root = write_chain(tmp_path / "flow")
    write_job(root, "sweep/x", "pretrain", [], cell={"training.warmup_tokens": "1"})
    pick = write_job(root, "pick", "select", ["sweep/x"])
    write_json(pick / "out" / "choice.json", {"schema_version": 1, "job": "sweep/x"})
    write_job(root, "pretrain/dense", "pretrain", ["pick"], "dense")
    keys = {path.relative_to(root / "jobs").parent.as_posix(): entry.keys for path, entry in selections(root).items()}
    assert keys["final/dense/seed=1"] == keys["finetune/dense/lr=0.0001"] == {"training.lr"}
    assert keys["pretrain/dense"] == {"training.warmup_tokens"}


def test_the_split_is_what_the_command_recorded(tmp_path: Path) -> None:
    config = pretrain_run(tmp_path / "pre", 0.0, steps=3)
    finetune_run(tmp_path / "fine", tmp_path / "pre", "webnlg", config, task="webnlg")
    for split in ("test_seen", "test_unseen", "test", "validation"):
        place = tmp_path / "fine" / f"{split}.json"
        write_scores(place, tmp_path / "fine", tmp_path / "pre", task="webnlg", split=split, bleu=50.0)
    found = sorted(score.split_title for score in read_results([tmp_path]).scores)
    assert found == ["all", "seen", "unseen", "validation"]


def test_the_baseline_is_the_variant_called_dense(tmp_path: Path) -> None:
    for name, level, steps in (("1m-dense", 0.0, STEPS), ("1m-s75", 0.75, STEPS), ("1m-stopped", 0.0, STEPS // 2)):
        folder = write_job(tmp_path, f"pretrain/{name}", "pretrain", [], name)
        pretrain_run(folder / "run", level, steps=steps, gap=level)
    study = read_results([tmp_path])
    rows = {row["variant"]: row for row in summary_table(study).rows}
    flops = {run.variant: run.last("flops") for run in study.pretraining}
    assert (
        rows["1m-stopped"]["pre-training FLOPs"].endswith("0.500x dense")
        and "dense" not in rows["1m-dense"]["pre-training FLOPs"]
    )
    assert rows["1m-s75"]["validation loss"].endswith("+0.750 to dense")
    ratio = flops["1m-s75"] / flops["1m-dense"]
    assert rows["1m-s75"]["pre-training FLOPs"].endswith(f"{ratio:.3f}x dense")
    assert f"{ratio:.2f}x dense" in notes_of(study) and f"{1 - ratio:.0%}" in dict(cards(study))


def notes_of(study: Results) -> str:
    """The notes beside the bars of the cost figure, and the label of its axis."""
    figure = next(plot for plot in cost_plots(study) if plot.name == "flops_spent").draw()
    (axes,) = figure.axes
    return " ".join([axes.get_xlabel(), *(text.get_text() for text in axes.texts)])


def test_flops_are_compared_on_one_task_that_both_were_fine_tuned_on(tmp_path: Path) -> None:
    """Only dense and s75 also have WebNLG. s75 has the sparse control. The fine-tuning of b75 is unfinished."""
    tunings = {
        "1m-dense": ["e2e", "webnlg"],
        "1m-stopped": ["e2e"],
        "1m-s75": ["e2e", "webnlg", "sparse"],
        "1m-b75": ["running"],
    }
    for name, tasks in tunings.items():
        pretrain = write_job(tmp_path, f"pretrain/{name}", "pretrain", [], name)
        level = 0.75 if name.endswith("75") else 0.0
        config = pretrain_run(pretrain / "run", level, steps=STEPS // 2 if name == "1m-stopped" else STEPS)
        for task in tasks:
            tuned = write_job(tmp_path, f"{task}/{name}", "finetune", [f"pretrain/{name}"], name)
            sparse = task == "sparse"
            finetune_run(
                tuned / "run",
                pretrain / "run",
                "train",
                config,
                task="webnlg" if task == "webnlg" else "e2e",
                keep_mask=sparse,
                steps={"e2e": 40, "webnlg": 400, "sparse": 13, "running": 5}[task],
            )
            if task == "running":
                (tuned / "run" / "finetune.json").unlink()
    study = read_results([tmp_path])
    before = {run.variant: run.last("flops") for run in study.pretraining}
    (after,) = {
        run.last("flops") for run in study.finetuning if run.task == "e2e" and run.finished and not run.keep_mask
    }
    notes = notes_of(study)
    for name in ("1m-stopped", "1m-s75"):
        both = before[name] + after
        assert f"{power_label(both)}, {both / (before['1m-dense'] + after):.2f}x dense" in notes
    assert f"pre-training {before['1m-b75'] / before['1m-dense']:.2f}x dense" in notes
    assert "one fine-tuning on E2E" in notes


def test_each_task_and_the_sparse_control_have_fine_tuning_figures_of_their_own(tmp_path: Path) -> None:
    losses = {"e2e": 0.0, "webnlg": 2.0, "sparse": 0.5}
    tunings = {"1m-dense": ["e2e", "webnlg"], "1m-s75": ["e2e", "sparse"]}
    for name, tasks in tunings.items():
        pretrain = write_job(tmp_path, f"pretrain/{name}", "pretrain", [], name)
        config = pretrain_run(pretrain / "run", 0.75 if name.endswith("75") else 0.0, steps=3)
        for task in tasks:
            tuned = write_job(tmp_path, f"{task}/{name}", "finetune", [f"pretrain/{name}"], name)
            kind = {"task": "e2e", "keep_mask": True} if task == "sparse" else {"task": task}
            finetune_run(tuned / "run", pretrain / "run", "train", config, gap=losses[task], **kind)
    study = read_results([tmp_path])
    dense, sparse = ([plot for plot in finetuning_plots(study, kept)] for kept in (False, True))
    plots = {plot.name: plot for plot in (*dense, *sparse)}
    assert all(plot.name.endswith("sparse") == (plot in sparse) for plot in plots.values())
    ends = {}
    for name, plot in plots.items():
        if "validation" in name:
            (axes,) = plot.draw().axes
            dots = {float(line.get_ydata()[-1]) for line in axes.lines}
            ends[name] = {text.get_text() for text in axes.get_legend().get_texts()}, dots
            assert name.partition("-")[2].partition("-")[0] in axes.get_title().lower()
    assert ends == {
        "finetune_validation-e2e": ({"1m-dense", "1m-s75"}, {1.6}),
        "finetune_validation-webnlg": ({"1m-dense"}, {3.6}),
        "finetune_validation-e2e-sparse": ({"1m-s75"}, {2.1}),
    }
    text = report([tmp_path], tmp_path / "out").read_text(encoding="utf-8")
    assert text.index("Dense fine-tuning") < text.index("Sparse fine-tuning")
    study.runs = [run for run in study.runs if run.task != "webnlg" and not run.keep_mask]
    assert [plot.name for plot in finetuning_plots(study, keep_mask=False)] == ["finetune_loss", "finetune_validation"]


def test_an_unfinished_run_saves_nothing(tmp_path: Path) -> None:
    pretrain_run(tmp_path / "dense", 0.0)
    pretrain_run(tmp_path / "sparse", 0.75)
    metrics = tmp_path / "sparse" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:31]), encoding="utf-8")
    study = read_results([tmp_path])
    row = summary_table(study).rows[1]
    assert row["variant"] == "75% sparse\nunfinished: 30 of 120 steps"
    assert "dense" not in row["validation loss"] + row["pre-training FLOPs"] and "x dense" not in notes_of(study)
    assert not cards(study)


def test_results_of_changed_inputs_are_left_out_and_named(tmp_path: Path) -> None:
    """Seed 3 left the grid before its data changed. Seed 2 is only in an earlier plan, with the present data."""
    root = tmp_path / "flow"
    write_job(root, "packed", "pack", [], key="new")
    for seed, data, bleu in ((1, "new", 0.60), (2, "new", 0.61), (3, "old", 0.10)):
        where = f"dense/seed={seed}"
        pretrain = write_job(root, f"pretrain/{where}", "pretrain", ["packed"], "dense", parents={"packed": data})
        config = pretrain_run(pretrain / "run", 0.0, seed=seed)
        tuned = write_job(root, f"finetune/{where}", "finetune", [f"pretrain/{where}"], "dense")
        finetune_run(tuned / "run", pretrain / "run", "e2e/trainset.csv", config, seed=seed)
        folder = write_job(root, f"evaluate/{where}", "evaluate", [f"finetune/{where}"], "dense")
        write_scores(folder / "out" / "scores.json", tuned / "run", pretrain / "run", bleu=bleu)
    write_json(root / "plan.json", {"jobs": [{"id": "packed"}, {"id": "pretrain/dense/seed=1"}]})
    study = read_results([root])
    assert sorted(score.metrics["bleu"] or 0 for score in study.scores) == [0.60, 0.61]
    assert {run.config.seed for run in study.runs} == {1, 2}
    text = report([root], tmp_path / "out").read_text(encoding="utf-8")
    assert "Left out, because an input has changed since: " in text and "evaluate/dense/seed=3 (packed)" in text
    reasons = {row["job"]: row["reason"] for row in rows_of(tmp_path / "out" / "jobs-flow.csv")}
    assert {job for job, reason in reasons.items() if reason} == {
        f"{name}/dense/seed=3" for name in ("pretrain", "finetune", "evaluate")
    }


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("metrics.jsonl", b"5\n", "line 127"),
        ("metrics.jsonl", b'{"loss": 3}\n', "line 127"),
        ("metrics.jsonl", b'\xff\xfe\n{"step": 121, "loss": 3.0}\n', "line 127"),
        ("config.yaml", b"new_key: 3\n", "new_key"),
        ("config.yaml", b"\xff\xfea: 1", "not UTF-8"),
        ("config.yaml", b"parallel: [1]\n", "parallel"),
        ("execution.json", b'{"layers": ["a"]}', "layers"),
        ("finetune.json", b'{"best_val_loss": "x"}', "best_val_loss"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, place: str
) -> None:
    pretrain_run(tmp_path / "good", 0.0)
    pretrain_run(tmp_path / "bad", 0.75)
    damaged = tmp_path / "bad" / name
    before = damaged.read_bytes() if damaged.suffix in (".jsonl", ".yaml") else b""
    damaged.write_bytes(before + content)
    study = read_results([tmp_path])
    assert [run.path.name for run in study.runs] == ["good"]
    (line,) = study.damaged.values()
    assert line.startswith(f"run {tmp_path / 'bad'}: left out: ") and place in line and "\n" not in line


def test_a_report_without_a_damaged_run_is_still_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain_run(tmp_path / "good", 0.0)
    pretrain_run(tmp_path / "bad", 0.75)
    (tmp_path / "bad" / "config.yaml").write_text("new_key: 3\n", encoding="utf-8")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"spdf report: warning: run {tmp_path / 'bad'}: left out: ") and error.count("\n") == 1
    assert "left out" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert main(["report", str(tmp_path / "bad"), "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_a_loss_that_was_not_finite_is_null(tmp_path: Path) -> None:
    pretrain_run(tmp_path / "run", 0.0)
    with (tmp_path / "run" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 120, "val_loss": null}\n')
    run = read_run(tmp_path / "run")
    assert len(run.validation) == 7 and run.final_validation != run.final_validation
    assert run.best_validation == pytest.approx(run.validation.iloc[-2])


def test_the_report_shows_what_change_and_rewind_did(tmp_path: Path) -> None:
    pretrain_run(tmp_path / "run", 0.0)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "before")]) == 0
    assert not (tmp_path / "before" / "changes.csv").exists()
    folder = RunFolder(tmp_path / "run")
    shutil.rmtree(folder.checkpoints)
    folder.record_change(["training.lr: 0.0006 -> 0.0003", "data.train: [] -> ['a -> b']"])
    folder.record_change(["rewound to step 40; the batches of steps 41 to 52 are left out"])
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    rows = list(csv.reader((tmp_path / "out" / "changes.csv").read_text(encoding="utf-8").splitlines()))
    assert [row[4:] for row in rows[1:]] == [
        ["training.lr", "0.0006", "0.0003"],
        ["data.train", "[]", "['a -> b']"],
        ["rewound to step 40; the batches of steps 41 to 52 are left out", "", ""],
    ]
    assert all(row[2] == "0" and row[3].endswith("+00:00") for row in rows[1:])
    assert "Changes during the runs" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    folder.changes.write_text("[]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"changes\.jsonl: not a record of changes"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("row", [5, {"op": "forward", "speedup": 1.0, "sparsity": 0.5}])
def test_other_json_is_no_measurement(tmp_path: Path, row: object) -> None:
    pretrain_run(tmp_path / "run", 0.0)
    write_json(tmp_path / "run" / "other.json", {"schema_version": 1, "results": [row]})
    assert not read_results([tmp_path]).bench


def test_plain_run_folders_are_named_by_their_config(tmp_path: Path) -> None:
    pretrain_run(tmp_path / "a", 0.0)
    config = pretrain_run(tmp_path / "b", 0.75, gap=0.1)
    finetune_run(tmp_path / "c", tmp_path / "b" / "checkpoints" / f"step_{STEPS}", "e2e/trainset.csv", config)
    study = read_results([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert [run.variant for run in study.runs] == ["dense", "75% sparse", "75% sparse"]
    assert study.runs[2].parent is study.runs[1]
    assert not study.synthetic


def test_seeds_give_mean_and_sample_deviation(tmp_path: Path) -> None:
    for seed, gap in ((1, 0.0), (2, 0.1), (3, 0.2)):
        pretrain_run(tmp_path / str(seed), 0.5, seed=seed, gap=gap)
    study = read_results([tmp_path])
    (row,) = summary_table(study).rows
    losses = [run.final_validation or 0 for run in study.runs]
    assert row["validation loss"] == f"{sum(losses) / 3:.3f} ± 0.100 (3)"
    assert row["runs"] == "3"


def test_deviation_is_of_the_sample() -> None:
    value = estimate([1.0, 2.0, None, float("nan")])
    assert value is not None
    assert (value.mean, value.count) == (1.5, 2)
    assert value.deviation == pytest.approx(0.5**0.5)
    single = estimate([3.0])
    assert single is not None and single.deviation is None
    assert estimate([None]) is None


def test_scales_of_the_paper() -> None:
    assert published_scale("e2e", "bleu") == 100
    assert published_scale("e2e", "nist") == 1
    assert published_scale("webnlg", "bleu") == 1


def test_a_line_cut_by_a_kill_is_left_out_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    pretrain_run(tmp_path / "run", 0.0)
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text(encoding="utf-8")
    metrics.write_text(whole + '{"step": 121, "lo', encoding="utf-8")
    assert read_run(tmp_path / "run").steps == STEPS
    metrics.write_text("{broken\n" + whole, encoding="utf-8")
    with pytest.raises(UserError, match="line 1"):
        read_run(tmp_path / "run")


def test_wall_clock_is_the_sum_of_step_times(tmp_path: Path) -> None:
    pretrain_run(tmp_path / "run", 0.0)
    run = read_run(tmp_path / "run")
    assert run.last("seconds") == pytest.approx(STEPS * 0.1)
    assert run.at_validations("tokens")[0] == 20 * 16 * 128


def test_a_variant_keeps_its_colour() -> None:
    few, many = (
        variant_colours(["dense", "75% sparse"]),
        variant_colours(["untrained", "dense", "50% sparse", "75% sparse"]),
    )
    assert few["dense"] == many["dense"] and few["75% sparse"] == many["75% sparse"]
    crowd = variant_colours([f"v{i}" for i in range(8)])
    assert len(set(crowd.values())) == 8


def test_command(workflow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["report", str(workflow), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1
    assert all(Path(path).is_file() for path in told["files"])
    assert told["report"] == str(out / "index.html")


@pytest.mark.parametrize("missing", [True, False])
def test_nothing_to_report_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: bool) -> None:
    folder = tmp_path / "empty"
    if not missing:
        folder.mkdir()
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(folder) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_one_clear_line(
    workflow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(AssertionError):
        report([workflow], tmp_path / "out")
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_losses_of_two_tasks_are_not_averaged() -> None:
    def tuned(task: str, loss: float, keep_mask: bool = False) -> Run:
        config = FinetuneConfig(finetune=TaskConfig(task=task, keep_mask=keep_mask))
        return Run(Path(task), config, finetune={"best_val_loss": loss, "reactivated": 0 if keep_mask else 5})

    assert finetuning_text([tuned("e2e", 1.5)]) == "1.500\n5 reactivated"
    both = [tuned("e2e", 1.5), tuned("webnlg", 3.0), tuned("e2e", 1.75, keep_mask=True)]
    assert finetuning_text(both) == "e2e: 1.500\nwebnlg: 3.000\ne2e, sparse: 1.750\n5 reactivated"
    assert finetuning_text([]) == "–"


def sweep(root: Path) -> Path:
    """Dense and 75% at two learning rates with two seeds each. One run is repeated at TP2, one in another folder."""
    for level in (0.0, 0.75):
        for lr in (1e-3, 2e-3):
            for seed in (1, 2):
                pretrain_run(root / f"{level}-{lr}-{seed}", level, seed=seed, gap=level + 100 * lr + seed / 100, lr=lr)
    pretrain_run(root / "tp2", 0.75, seed=1, gap=0.85, lr=1e-3, tensor=2)
    pretrain_run(root / "zero-again", 0.75, seed=1, gap=0.85, lr=1e-3)
    return root


def test_only_runs_that_differ_in_their_seeds_are_averaged(tmp_path: Path) -> None:
    rows = {row["variant"]: row for row in summary_table(read_results([sweep(tmp_path)])).rows}
    assert {name: row["runs"] for name, row in rows.items()} == {
        "dense, lr 0.001": "2",
        "dense, lr 0.002": "2",
        "75% sparse, lr 0.001, tensor 1": "2",
        "75% sparse, lr 0.002, tensor 1": "2",
        "75% sparse, lr 0.001, tensor 2": "1",
        "75% sparse, lr 0.001, tensor 1, again in zero-again": "1",
    }
    assert rows["75% sparse, lr 0.002, tensor 1"]["validation loss"].endswith(
        "± 0.007 (2)\n+0.750 to dense"
    )  # of the same rate


def test_a_person_can_name_runs(tmp_path: Path) -> None:
    pretrain_run(tmp_path / "a", 0.0)
    config = pretrain_run(tmp_path / "b", 0.75)
    finetune_run(tmp_path / "c", tmp_path / "b", "e2e/trainset.csv", config)
    named = ["--name", f"baseline={tmp_path / 'a'}", "--name", f"ours={tmp_path / 'b'}"]
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out"), *named]) == 0
    assert [row["variant"] for row in rows_of(tmp_path / "out" / "summary.csv")] == ["baseline", "ours"]
    assert [row["variant"] for row in rows_of(tmp_path / "out" / "runs.csv")] == ["baseline", "ours", "ours"]


@pytest.mark.parametrize("value", ["x", "=x", "x=no-such-folder"])
def test_a_name_without_a_folder_is_one_clear_line(
    workflow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(workflow), "--out", str(tmp_path / "out"), "--name", value])
    assert ended.value.code == 2 and "write LABEL=DIR" in capsys.readouterr().err


def test_scores_without_a_record_are_listed_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outputs without a record, and scores of texts from other programs."""
    pretrain_run(tmp_path / "run", 0.0)
    write_json(tmp_path / "run" / "scores.json", {"schema_version": 1, "task": "e2e", "bleu": 0.5})
    page = report([tmp_path], tmp_path / "out").read_text(encoding="utf-8")
    assert not read_results([tmp_path]).scores and "Scores of unknown origin" in page
    (row,) = rows_of(tmp_path / "out" / "unattributed.csv")
    assert row["scores"] == "bleu 0.5" and row["file"].endswith("run/scores.json")
    assert "listed and not compared" in capsys.readouterr().err


def test_a_score_brings_its_runs_from_its_record(tmp_path: Path) -> None:
    """Only scores.json was copied. It contains the configs of both runs."""
    config = pretrain_run(tmp_path / "far" / "pre", 0.75)
    finetune_run(tmp_path / "far" / "fine", tmp_path / "far" / "pre", "e2e/trainset.csv", config)
    for name in ("a", "b"):
        write_scores(tmp_path / f"{name}.json", tmp_path / "far" / "fine", tmp_path / "far" / "pre", bleu=0.6)
    (tmp_path / "far").rename(tmp_path / "elsewhere")
    (score,) = read_results([tmp_path / "a.json", tmp_path / "b.json"]).scores
    assert (score.title, score.run.size(), score.run.config.seed) == ("75% sparse", "1.07M", 1)


def test_decodings_of_one_model_are_rows_of_their_own(tmp_path: Path) -> None:
    config = pretrain_run(tmp_path / "pre", 0.0)
    finetune_run(tmp_path / "fine", tmp_path / "pre", "e2e/trainset.csv", config)
    for beams in (1, 10):
        place = tmp_path / "fine" / f"{beams}.json"
        write_scores(place, tmp_path / "fine", tmp_path / "pre", settings={"beams": beams}, bleu=0.5 + beams / 100)
    (table,) = score_tables(read_results([tmp_path]))
    assert [(row["variant"], row["BLEU ↑"]) for row in table.rows] == [
        ("dense, beams 1", "0.5100"),
        ("dense, beams 10", "0.6000"),
    ]


def test_the_headline_compares_quality_only_over_pairs_of_seeds(tmp_path: Path) -> None:
    for seed in (1, 2):
        for level in (0.0, 0.75):
            pretrain_run(tmp_path / f"{level}-{seed}", level, seed=seed, gap=level / 10)
        told = [text for _, text in cards(read_results([tmp_path]))]
        assert any("fewer pre-training FLOPs" in text for text in told)
        assert any("pre-training speed" in text for text in told)
        assert any("validation loss" in text for text in told) == (seed == 2)


def test_figures_can_be_read_at_400_pixels(workflow: Path) -> None:
    sections = result_sections(read_results([workflow]))
    with drawing():
        for plot in (plot for section in sections for plot in section.plots):
            figure = plot.draw()
            pixels_per_point = 400 / (72 * figure.get_figwidth())
            sizes = [text.get_fontsize() for axes in figure.axes for text in axes.texts]
            assert pixels_per_point * min([*sizes, 9.0]) > 8.5, plot.name
