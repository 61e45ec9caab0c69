"""The paper's Tables 1 to 6 and Figure 1 and the blog's Figures 2 and 4, with ours beside the printed figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdf_dist.accounting.paper import (
    FIGURE_2_REMARK,
    LEVELS,
    MODELS,
    TABLE_2_COLUMNS,
    TABLE_3_COLUMNS,
    TABLE_3_REMARKS,
    Row,
    figure_2,
    table_2,
    table_3,
)
from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.report.bench import bench_note, speedup_series
from spdf_dist.report.figures import Bar, Dot, bar_figure, dot_figure, speedup_figure
from spdf_dist.report.plots import Plot
from spdf_dist.report.published import (
    CONFIG_NAMES,
    CURATION_DELTAS,
    TABLE_1,
    TABLE_1_COLUMNS,
    TABLE_NUMBERS,
    TABLES_4_TO_6,
)
from spdf_dist.report.runs import short_count
from spdf_dist.report.scores import TASK_NAMES, Estimate, Score, estimate, metric_name, paper_scale, selected
from spdf_dist.report.study import Study
from spdf_dist.report.style import variant_colours
from spdf_dist.report.tables import NOT_RUN, Table, score_groups, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECTION = "The paper beside ours"


def paper_tables(study: Study) -> list[Table]:
    """Tables 1 to 6 and the Curation Corpus deltas."""
    return [
        table_1(),
        flops_table(
            "paper_table_2",
            "Paper, Table 2: pre-training FLOPs",
            ("model", "sparsity"),
            TABLE_2_COLUMNS,
            table_2(),
            "",
        ),
        flops_table(
            "paper_table_3",
            "Paper, Table 3: dense fine-tuning FLOPs",
            ("task", "model"),
            TABLE_3_COLUMNS,
            table_3(),
            " ".join(TABLE_3_REMARKS),
        ),
        *(score_table(study, task) for task in TABLES_4_TO_6),
        curation_table(study),
    ]


def table_1() -> Table:
    """Sizes and hyper-parameters, from the shipped configs."""
    rows = []
    for name, printed in TABLE_1.items():
        config = load_config(PretrainConfig, CONFIG_NAMES[name])
        model, training = config.model, config.training
        parameters = total_parameters(model)
        ours = (
            f"{parameters:,}",
            str(model.num_layers),
            str(model.hidden_size),
            str(model.num_attention_heads),
            str(model.hidden_size // model.num_attention_heads),
            str(training.global_batch_size),
            f"{training.lr:.0e}".replace("e-0", "e-"),
            short_count(training.train_tokens),
        )
        rows.append(
            [name, *(text if text == own else f"{text}\nours {own}" for text, own in zip(printed, ours, strict=True))]
        )
    return Table(
        "paper_table_1",
        "Paper, Table 1: models",
        ["model", *TABLE_1_COLUMNS],
        rows,
        "A single figure: the shipped config (gpt2_small, gpt3_xl) has the printed value. Parameters without padding.",
    )


def flops_table(
    name: str, title: str, labels: tuple[str, str], columns: tuple[str, ...], rows: list[Row], note: str
) -> Table:
    """Table 2 or 3; a figure that differs from the printed one shows both and its reason."""
    body, marks, notes = [], set(), []
    for r, row in enumerate(rows):
        cells = list(row.labels)
        for k, figure in enumerate(row.figures):
            if figure.reproduced:
                cells.append(figure.printed)
            else:
                cells.append(f"{figure.printed}\nours {figure.shown}")
                marks.add((r, len(labels) + k))
                notes.append(f"{' '.join(row.labels)}, {figure.column}: {figure.note}.")
        body.append(cells)
    text = "A single figure: every printed digit is reproduced. Printed otherwise: " + " ".join(notes) + " " + note
    return Table(name, title, [*labels, *columns], body, text.strip(), labels=2, marks=marks)


def our_scores(study: Study, task: str, model: str, level: float) -> list[Score]:
    """Real scores of that paper model, fine-tuned dense; of WebNLG the seen split, which 63.4 BLEU points to."""
    found = [
        score
        for score in study.scores
        if score.task == task
        and score.model == model
        and score.level == level
        and not score.keep_mask
        and not score.synthetic
        and score.split == ("seen" if task == "webnlg" else "")
    ]
    return selected(found)


def our_estimate(study: Study, task: str, model: str, level: float, metric: str) -> Estimate | None:
    """Mean and deviation of ours on the paper's scale; None where nothing was run."""
    values = [
        None if (raw := score.metrics.get(metric)) is None else paper_scale(task, metric, raw)
        for score in our_scores(study, task, model, level)
    ]
    return estimate(values)


def score_table(study: Study, task: str) -> Table:
    """Table 4, 5 or 6: printed, ours and the difference, in one cell."""
    printed = TABLES_4_TO_6[task]
    metrics = list(next(iter(printed.values())))
    rows = []
    for (model, level), values in printed.items():
        cells = [model, f"{level:.0%}"]
        for metric in metrics:
            text, deviation = values[metric]
            ours = our_estimate(study, task, model, level, metric)
            top = f"{text} ± {deviation}" if deviation else text
            if ours is None:
                cells.append(f"{top}\n{NOT_RUN}")
            else:
                digits = len(text.partition(".")[2])
                cells.append(f"{top}\nours {ours.text(digits)}, {signed(ours.mean - float(text), digits)}")
        rows.append(cells)
    note = "Printed, mean ± deviation; below it ours, mean ± sample deviation (runs), and the difference."
    if task == "webnlg":
        note += " Ours is the seen split, which 63.4 BLEU points to; the scores above also give unseen and all."
    return Table(
        f"paper_table_{TABLE_NUMBERS[task]}",
        f"Paper, Table {TABLE_NUMBERS[task]}: {TASK_NAMES[task]}",
        ["model", "sparsity", *(metric_name(metric) for metric in metrics)],
        rows,
        note,
        labels=2,
    )


def curation_delta(study: Study, model: str, level: float) -> float | None:
    """Our perplexity above dense on Curation Corpus; None unless both were run."""
    sparse = our_estimate(study, "curation", model, level, "perplexity")
    dense = our_estimate(study, "curation", model, 0.0, "perplexity")
    return sparse.mean - dense.mean if sparse and dense else None


def curation_table(study: Study) -> Table:
    """Perplexity above dense on Curation Corpus, which is all that the blog gives."""
    rows = []
    for model in MODELS:
        for level in LEVELS[1:]:
            printed = CURATION_DELTAS.get((model, level))
            ours = curation_delta(study, model, level)
            rows.append(
                [
                    model,
                    f"{level:.0%}",
                    f"+{printed:.2f}" if printed is not None else "not given",
                    NOT_RUN if ours is None else signed(ours, 2),
                    "–" if ours is None or printed is None else signed(ours - printed, 2),
                ]
            )
    return Table(
        "paper_curation",
        "Blog: Curation Corpus, perplexity above the dense baseline",
        ["model", "sparsity", "printed", "ours", "difference"],
        rows,
        labels=2,
    )


def paper_plots(study: Study) -> list[Plot]:
    """Figure 1 of the paper, Figures 2 and 4 of the blog."""
    plots = [
        Plot(
            "figure_2", SECTION, f"Blog, Figure 2, regenerated from the FLOP formula. {FIGURE_2_REMARK}", draw_figure_2
        ),
        Plot(
            "figure_4",
            SECTION,
            "Blog, Figure 4: filled is ours, hollow is printed; models of other sizes have panels of their own. "
            + figure_4_gap(study),
            lambda: draw_figure_4(study),
        ),
    ]
    lines = speedup_series(study.bench) if study.bench else []
    if lines:
        levels = sorted({x / 100 for line in lines for x in line.x})
        plots.insert(
            0,
            Plot(
                "figure_1",
                SECTION,
                f"Paper, Figure 1, for this machine: {bench_note(study.bench)}",
                lambda: speedup_figure("Measured and theoretical speed-up over sparsity", levels, lines),
            ),
        )
    return plots


def draw_figure_2() -> Figure:
    """FLOPs of GPT-3 XL's pre-training and of fine-tuning on Curation Corpus after it."""
    colours = variant_colours(["dense", "50%", "75%"])
    bars = []
    for row in figure_2():
        name = "dense" if row["sparsity"] == 0 else f"{row['sparsity']:.0%}"
        total = row["pretraining"] + row["finetuning"]
        saved = f", {row['reduction']:.0%} less" if row["reduction"] else ""
        bars.append(
            Bar(name, colours[name], [row["pretraining"], row["finetuning"]], f"{total / 1e18:.1f} exaFLOPs{saved}")
        )
    return bar_figure("GPT-3 XL: pre-training, then Curation Corpus", "FLOPs", bars, ("pre-training", "fine-tuning"))


def figure_4_gap(study: Study) -> str:
    """What Figure 4 lacks of ours, in words."""
    missing = [
        f"{model} {level:.0%}"
        for model, level in TABLES_4_TO_6["e2e"]
        if our_estimate(study, "e2e", model, level, "bleu") is None
    ]
    if len(missing) == len(TABLES_4_TO_6["e2e"]):
        return "None of the paper's models was run for this report."
    return f"Of the paper's models not run: {', '.join(missing)}." if missing else ""


def draw_figure_4(study: Study) -> Figure:
    """E2E BLEU and the perplexity above dense on Curation Corpus, printed and ours."""
    colours = variant_colours(["0%", "50%", "75%"]) | {"0%": "#2f7fc4"}
    left, right = [], []
    for (model, level), values in TABLES_4_TO_6["e2e"].items():
        label, colour = f"{model} {level:.0%}", colours[f"{level:.0%}"]
        text, deviation = values["bleu"]
        left.append(Dot(label, colour, float(text), float(deviation), text, hollow=True))
        ours = our_estimate(study, "e2e", model, level, "bleu")
        if ours:
            left.append(Dot(f"{label}, ours", colour, ours.mean, ours.deviation, f"{ours.mean:.2f}"))
    for model in MODELS:
        for level in LEVELS[1:]:
            label, colour = f"{model} {level:.0%}", colours[f"{level:.0%}"]
            printed, own = CURATION_DELTAS.get((model, level)), curation_delta(study, model, level)
            if printed is not None:
                right.append(Dot(label, colour, printed, None, f"+{printed:.2f}", hollow=True))
            if own is not None:
                right.append(Dot(f"{label}, ours", colour, own, None, signed(own, 2)))
    panels = [("E2E, BLEU ↑", left), ("Curation Corpus, perplexity above dense ↓", right)]
    return dot_figure("Fine-tuned quality at each pre-training sparsity", [*panels, *own_panels(study)])


def own_panels(study: Study) -> list[tuple[str, list[Dot]]]:
    """The same two tasks on models of our own sizes, real data alone."""
    colours = variant_colours(study.variants)
    panels = []
    for (task, split, size), group in score_groups(study).items():
        metric = {"e2e": "bleu", "curation": "perplexity"}.get(task)
        scores = [score for members in group.values() for score in members]
        if metric is None or split or any(score.synthetic or score.model for score in scores):
            continue
        dots = []
        for name, members in group.items():
            raw = [score.metrics.get(metric) for score in members]
            ours = estimate([None if v is None else paper_scale(task, metric, v) for v in raw])
            if ours:
                colour = colours[members[0].variant]
                dots.append(Dot(name, colour, ours.mean, ours.deviation, f"{ours.mean:.2f}"))
        if dots:
            panels.append((f"Ours, {size}: {TASK_NAMES[task]}, {metric_name(metric)}", dots))
    return panels
