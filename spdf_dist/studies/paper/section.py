"""Tables 1 to 6 and Figure 1 of the paper and Figures 2 and 4 of the blog, as a section of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spdf_dist.accounting import paper
from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.base.numbers import signed
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.report.figures import Bar, Dot, bar_figure, dot_figure
from spdf_dist.report.page import NONE, NOT_RUN, Plot, Section, Table, Texts
from spdf_dist.report.results import Results
from spdf_dist.report.scores import metric_name
from spdf_dist.report.speedups import bench_note, largest_square, speedup_figure, speedup_points
from spdf_dist.report.style import variant_colours
from spdf_dist.studies.paper.printed import TABLES, our_above_dense, our_estimate, printed, printed_above_dense, table_1


def beside(printed: str, ours: object) -> str:
    """The printed value and, where it differs, ours below it."""
    return printed if printed == str(ours) else f"{printed}\nours {ours}"


TEXTS = Texts(Path(__file__).with_name("texts.yaml"), beside=beside)


def paper_section(results: Results) -> Section:
    """The section of the paper. It is collapsed when no result can be compared."""
    tables = [
        models_table(),
        flops_table(2, ("model", "sparsity"), paper.table_2()),
        flops_table(3, ("task", "model"), paper.table_3(), paper.TABLE_3_REMARKS),
        *(score_table(results, task) for task in TABLES),
        curation_table(results),
    ]
    folded = not results.bench and all(score.synthetic for score in results.scores)
    return Section(TEXTS.content["title"], [TEXTS.content["intro"]], paper_plots(results), tables, folded)


def models_table() -> Table:
    """Table 1: sizes and hyper-parameters, compared with the shipped configs."""
    rows = []
    for name, theirs in table_1().items():
        config = load_config(PretrainConfig, theirs["config"])
        row = {"name": name, "theirs": theirs, "model": config.model, "training": config.training}
        rows.append(row | {"parameters": total_parameters(config.model)})
    return TEXTS.table("paper_table_1", rows)


def flops_table(number: int, labels: Sequence[str], found: Sequence[paper.Row], remarks: Sequence[str] = ()) -> Table:
    """Table 2 or 3. Where a number differs from the printed one, the table shows both and the note gives the reason."""
    rows, differences = [], []
    for row in found:
        cells = {figure.column: beside(figure.printed, figure.shown) for figure in row.figures}
        rows.append(dict(zip(labels, row.labels, strict=True)) | cells)
        different = [figure for figure in row.figures if not figure.reproduced]
        differences += [f"{' '.join(row.labels)}, {figure.column}: {figure.note}." for figure in different]
    return TEXTS.table(f"paper_table_{number}", rows, differences=" ".join([*differences, *remarks]))


def score_table(results: Results, task: str) -> Table:
    """Table 4, 5 or 6. A cell has the printed value, our value and the difference."""
    rows = []
    for (model, level), values in printed(task).items():
        row = {"model": model, "sparsity": f"{level:.0%}"}
        for metric, (text, deviation) in values.items():
            ours = our_estimate(results, task, (model, level), metric)
            digits = len(text.partition(".")[2])
            below = f"ours {ours.text(digits)}, {signed(ours.mean - float(text), digits)}" if ours else NOT_RUN
            row[metric_name(metric)] = (f"{text} ± {deviation}" if deviation else text) + f"\n{below}"
        rows.append(row)
    return TEXTS.table(f"paper_table_{TABLES[task]}", rows)


def curation_table(results: Results) -> Table:
    """Perplexity above dense on Curation Corpus, which is the only number in the blog."""
    rows = []
    for model, level in ((model, level) for model in paper.MODELS for level in paper.LEVELS[1:]):
        text, ours = printed_above_dense((model, level)), our_above_dense(results, (model, level))
        difference = signed(ours - float(text), 2) if ours is not None and text else NONE
        row = {"model": model, "sparsity": f"{level:.0%}", "printed": f"+{text}" if text else "not given"}
        rows.append(row | {"ours": NOT_RUN if ours is None else signed(ours, 2), "difference": difference})
    return TEXTS.table("paper_curation", rows)


def paper_plots(results: Results) -> list[Plot]:
    """Figure 1 of the paper, and Figures 2 and 4 of the blog."""
    square = largest_square(results.bench)
    measured = [TEXTS.plot("figure_1", speedup_figure, square, measurement=bench_note(results.bench))]
    return [
        *(measured if speedup_points(square) else []),
        TEXTS.plot("figure_2", figure_2, remark=paper.FIGURE_2_REMARK),
        TEXTS.plot("figure_4", figure_4, results),
    ]


def level_colour(level: float) -> str:
    """The colour of a sparsity level."""
    (colour,) = variant_colours([f"{level:.0%}" if level else "dense"]).values()
    return colour


def figure_2(title: str) -> Figure:
    """FLOPs of GPT-3 XL's pre-training and of its fine-tuning on Curation Corpus."""
    bars = []
    for row in paper.figure_2():
        level, parts = row["sparsity"], [row["pretraining"], row["finetuning"]]
        note = f"{sum(parts) / 1e18:.1f} exaFLOPs" + (f", {row['reduction']:.0%} less" if row["reduction"] else "")
        bars.append(Bar(f"{level:.0%}" if level else "dense", level_colour(level), parts, note))
    return bar_figure(title, "FLOPs", bars, ("pre-training", "fine-tuning"))


def figure_4(title: str, results: Results) -> Figure:
    """E2E BLEU and perplexity above dense on Curation Corpus, printed and ours."""
    e2e, curation = [], []
    for (model, level), values in printed("e2e").items():
        label, colour, (text, deviation) = f"{model} {level:.0%}", level_colour(level), values["bleu"]
        e2e.append(Dot(label, colour, float(text), float(deviation), text, hollow=True))
        if ours := our_estimate(results, "e2e", (model, level), "bleu"):
            e2e.append(Dot(f"{label}, ours", colour, ours.mean, ours.deviation, f"{ours.mean:.2f}"))
        if text := printed_above_dense((model, level)):
            curation.append(Dot(label, colour, float(text), None, f"+{text}", hollow=True))
        above = our_above_dense(results, (model, level)) if level else None
        if above is not None:
            curation.append(Dot(f"{label}, ours", colour, above, None, signed(above, 2)))
    panels = [("E2E, BLEU ↑", e2e), ("Curation Corpus, perplexity above dense ↓", curation)]
    return dot_figure(title, panels)
