"""Tables 1 to 6 and Figure 1 of the paper and Figures 2 and 4 of the blog, as a section of the report."""

from __future__ import annotations

from functools import partial
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
from spdf_dist.report.figures import Bar, Dot, bar_figure, dot_figure, speedup_figure
from spdf_dist.report.page import Section
from spdf_dist.report.plots import Plot
from spdf_dist.report.results import Results
from spdf_dist.report.runs import short_count
from spdf_dist.report.scores import estimate, metric_name, published_scale, signed, task_title
from spdf_dist.report.speedups import bench_note, largest_square, speedup_series
from spdf_dist.report.style import variant_colours
from spdf_dist.report.tables import NOT_RUN, Table, score_groups
from spdf_dist.studies.paper.printed import (
    ABOVE_DENSE,
    TABLES,
    our_estimate,
    our_perplexity_above_dense,
    paper_model,
    printed,
    table_1,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "The paper beside ours"
INTRO = (
    "Printed figures of SPDF (appendix and blog) with ours next to them. What was not run says so. Ours are models of "
    "that shape, pre-trained on as many tokens and fine-tuned dense; controls and other patterns are in the scores."
)


def paper_section(results: Results) -> Section:
    """The section of the paper. It is collapsed when no result can be compared."""
    tables = [
        models_table(),
        flops_table("2: pre-training FLOPs", ("model", "sparsity"), TABLE_2_COLUMNS, table_2()),
        flops_table("3: dense fine-tuning FLOPs", ("task", "model"), TABLE_3_COLUMNS, table_3(), TABLE_3_REMARKS),
        *(score_table(results, task) for task in TABLES),
        curation_table(results),
    ]
    folded = not results.bench and all(score.synthetic for score in results.scores)
    return Section(TITLE, (INTRO,), paper_plots(results), tables, folded)


def models_table() -> Table:
    """Table 1: sizes and hyper-parameters, compared with the shipped configs."""
    rows = []
    for name, theirs in table_1().items():
        config = load_config(PretrainConfig, theirs["config"])
        model, training = config.model, config.training
        ours = {
            "parameters": f"{total_parameters(model):,}",
            "layers": str(model.num_layers),
            "d_model": str(model.hidden_size),
            "heads": str(model.num_attention_heads),
            "d_head": str(model.hidden_size // model.num_attention_heads),
            "batch": str(training.global_batch_size),
            "learning rate": f"{training.lr:.0e}".replace("e-0", "e-"),
            "tokens": short_count(training.train_tokens),
        }
        rows.append([name, *(theirs[k] if theirs[k] == own else f"{theirs[k]}\nours {own}" for k, own in ours.items())])
    return Table(
        "paper_table_1",
        "Paper, Table 1: models",
        ["model", *ours],
        rows,
        "A single figure: the shipped config (gpt2_small, gpt3_xl) has the printed value. Parameters without padding.",
    )


def flops_table(
    title: str, labels: tuple[str, str], columns: tuple[str, ...], rows: list[Row], remarks: tuple[str, ...] = ()
) -> Table:
    """Table 2 or 3. Where a number differs from the printed one, the table shows both and the note gives the reason."""
    body, marks, notes = [], set(), []
    for r, row in enumerate(rows):
        cells = list(row.labels)
        for k, figure in enumerate(row.figures):
            cells.append(figure.printed if figure.reproduced else f"{figure.printed}\nours {figure.shown}")
            if not figure.reproduced:
                marks.add((r, len(labels) + k))
                notes.append(f"{' '.join(row.labels)}, {figure.column}: {figure.note}.")
        body.append(cells)
    text = " ".join(["A single figure: every printed digit is reproduced. Printed otherwise:", *notes, *remarks])
    name = f"paper_table_{title[0]}"
    return Table(name, f"Paper, Table {title}", [*labels, *columns], body, text, labels=2, marks=marks)


def score_table(results: Results, task: str) -> Table:
    """Table 4, 5 or 6. A cell has the printed value, our value and the difference."""
    cells = printed(task)
    metrics = list(next(iter(cells.values())))
    rows = []
    for cell, values in cells.items():
        row = [cell[0], f"{cell[1]:.0%}"]
        for metric in metrics:
            text, deviation = values[metric]
            ours = our_estimate(results, task, cell, metric)
            digits = len(text.partition(".")[2])
            below = f"ours {ours.text(digits)}, {signed(ours.mean - float(text), digits)}" if ours else NOT_RUN
            row.append((f"{text} ± {deviation}" if deviation else text) + f"\n{below}")
        rows.append(row)
    note = "Printed, mean ± deviation; below it ours, mean ± sample deviation (runs), and the difference."
    if task == "webnlg":
        note += " Ours is the seen split, which 63.4 BLEU points to; the scores above also give unseen and all."
    title = f"Paper, Table {TABLES[task]}: {task_title(task)}"
    header = ["model", "sparsity", *(metric_name(metric) for metric in metrics)]
    return Table(f"paper_table_{TABLES[task]}", title, header, rows, note, labels=2)


def curation_table(results: Results) -> Table:
    """Perplexity above dense on Curation Corpus, which is the only number in the blog."""
    rows = []
    for cell in ((model, level) for model in MODELS for level in LEVELS[1:]):
        text = printed("curation").get(cell, {}).get(ABOVE_DENSE, ("", ""))[0]
        ours = our_perplexity_above_dense(results, cell)
        difference = signed(ours - float(text), 2) if ours is not None and text else "–"
        told = [f"+{text}" if text else "not given", NOT_RUN if ours is None else signed(ours, 2), difference]
        rows.append([cell[0], f"{cell[1]:.0%}", *told])
    title = "Blog: Curation Corpus, perplexity above the dense baseline"
    return Table("paper_curation", title, ["model", "sparsity", "printed", "ours", "difference"], rows, labels=2)


def paper_plots(results: Results) -> list[Plot]:
    """Figure 1 of the paper, and Figures 2 and 4 of the blog."""
    missing = [f"{model} {level:.0%}" for model, level in printed("e2e") if not ours_at(results, model, level)]
    gap = f"Of the paper's models not run: {', '.join(missing)}." if missing else ""
    if len(missing) == len(printed("e2e")):
        gap = "None of the paper's models was run for this report."
    remark_4 = "Blog, Figure 4: filled is ours, hollow is printed; models of other sizes have panels of their own."
    plots = [
        Plot("figure_2", TITLE, f"Blog, Figure 2, regenerated from the FLOP formula. {FIGURE_2_REMARK}", draw_figure_2),
        Plot("figure_4", TITLE, f"{remark_4} {gap}", partial(draw_figure_4, results)),
    ]
    lines = speedup_series(largest_square(results.bench))
    if lines:
        caption = f"Paper, Figure 1, for this machine: {bench_note(results.bench)}"
        draw = partial(speedup_figure, "Measured and theoretical speed-up over sparsity", lines)
        plots.insert(0, Plot("figure_1", TITLE, caption, draw))
    return plots


def ours_at(results: Results, model: str, level: float) -> bool:
    """Whether we have an E2E score for this model and level."""
    return our_estimate(results, "e2e", (model, level), "bleu") is not None


def draw_figure_2() -> Figure:
    """FLOPs of GPT-3 XL's pre-training and of its fine-tuning on Curation Corpus."""
    colours = variant_colours(["dense", "50%", "75%"])
    bars = []
    for row in figure_2():
        name = "dense" if row["sparsity"] == 0 else f"{row['sparsity']:.0%}"
        saved = f", {row['reduction']:.0%} less" if row["reduction"] else ""
        parts = [row["pretraining"], row["finetuning"]]
        bars.append(Bar(name, colours[name], parts, f"{sum(parts) / 1e18:.1f} exaFLOPs{saved}"))
    return bar_figure("GPT-3 XL: pre-training, then Curation Corpus", "FLOPs", bars, ("pre-training", "fine-tuning"))


def draw_figure_4(results: Results) -> Figure:
    """E2E BLEU and perplexity above dense on Curation Corpus, printed and ours."""
    colours = variant_colours(["0%", "50%", "75%"]) | {"0%": "#2f7fc4"}
    e2e, curation = [], []
    for (model, level), values in printed("e2e").items():
        label, colour = f"{model} {level:.0%}", colours[f"{level:.0%}"]
        text, deviation = values["bleu"]
        e2e.append(Dot(label, colour, float(text), float(deviation), text, hollow=True))
        ours = our_estimate(results, "e2e", (model, level), "bleu")
        if ours:
            e2e.append(Dot(f"{label}, ours", colour, ours.mean, ours.deviation, f"{ours.mean:.2f}"))
    for model, level in printed("e2e"):
        label, colour = f"{model} {level:.0%}", colours[f"{level:.0%}"]
        text = printed("curation").get((model, level), {}).get(ABOVE_DENSE, ("", ""))[0]
        own = our_perplexity_above_dense(results, (model, level)) if level else None
        if text:
            curation.append(Dot(label, colour, float(text), None, f"+{text}", hollow=True))
        if own is not None:
            curation.append(Dot(f"{label}, ours", colour, own, None, signed(own, 2)))
    panels = [("E2E, BLEU ↑", e2e), ("Curation Corpus, perplexity above dense ↓", curation)]
    return dot_figure("Fine-tuned quality at each pre-training sparsity", [*panels, *own_panels(results)])


def own_panels(results: Results) -> list[tuple[str, list[Dot]]]:
    """Panels of the same two tasks for models that the paper does not have, on real data."""
    colours = variant_colours(results.variants)
    panels = []
    for (task, split, size), group in score_groups(results).items():
        metric = {"e2e": "bleu", "curation": "perplexity"}.get(task)
        scores = [score for members in group.values() for score in members]
        if metric is None or split or any(score.synthetic or paper_model(score.run) for score in scores):
            continue
        dots = []
        for name, members in group.items():
            values = (score.metrics.get(metric) for score in members)
            ours = estimate(None if value is None else published_scale(task, metric, value) for value in values)
            if ours:
                colour = colours[members[0].run.variant]
                dots.append(Dot(name, colour, ours.mean, ours.deviation, f"{ours.mean:.2f}"))
        if dots:
            panels.append((f"Ours, {size}: {task_title(task)}, {metric_name(metric)}", dots))
    return panels
