"""The section of an evidence study in the report, and its results as Markdown."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.report.figures import Dot, Series, dot_figure, line_figure, power_label, time_unit
from spdf_dist.report.page import Section
from spdf_dist.report.plots import LOSS, Plot
from spdf_dist.report.runs import short_count
from spdf_dist.report.scores import estimate, signed
from spdf_dist.report.style import variant_colours
from spdf_dist.report.tables import NOT_RUN, Table, duration
from spdf_dist.studies.evidence.claims import (
    CLAIMS,
    Claim,
    Paired,
    above_dense,
    column,
    described,
    findings,
    finished,
    mean_of,
    paired,
    verdict,
)
from spdf_dist.studies.evidence.rows import DONE, Evidence

TITLE = "Evidence"
TIME_NOTE = (
    "The time is derived, not read from a clock: tokens over the median tokens/s of the run's steps, on the machine "
    "that ran it; pauses, validation and saving are not in it."
)
BEGIN, END = "<!-- evidence: begin (written by spdf report --markdown) -->", "<!-- evidence: end -->"


def interval_text(value: Paired | None, digits: int) -> str:
    """Text such as '-0.41 ± 0.22 (3), 95% [-0.96, +0.14]', with a line break for the comma."""
    if value is None:
        return NOT_RUN
    text = signed(value.mean, digits)
    if value.deviation is None or value.half_width is None:
        return f"{text} (1)"
    low, high = value.mean - value.half_width, value.mean + value.half_width
    return f"{text} ± {value.deviation:.{digits}f} ({value.count})\n95% [{signed(low, digits)}, {signed(high, digits)}]"


def cells_of(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(size, variant, fine-tuning) in reading order."""
    place = {size: k for k, size in enumerate(evidence.sizes)}
    seen = dict.fromkeys((row.size, row.variant, row.finetuning) for row in evidence.rows)
    return sorted(seen, key=lambda cell: place[cell[0]])


def evidence_section(evidence: Evidence) -> list[Section]:
    """The section about the paper's hypotheses; empty without a study of them."""
    if not evidence.rows:
        return []
    intro = [state_text(evidence), *verdict_lines(evidence), *(f"Not done: {line}." for line in missing_text(evidence))]
    return [Section(TITLE, intro, evidence_plots(evidence), evidence_tables(evidence))]


def cost_table(evidence: Evidence) -> Table:
    """The table of pre-training: sizes, budgets, learning rates, FLOPs and times."""
    rows = []
    for size, variant, finetuning in cells_of(evidence):
        if finetuning == "sparse":
            continue
        known = [
            row
            for row in evidence.rows
            if (row.size, row.variant, row.finetuning) == (size, variant, "dense") and row.parameters
        ]
        name = described(evidence, size, variant, finetuning)
        if not known:
            rows.append([size, name, *[NOT_RUN] * 9])
            continue
        first = known[0]
        flops, base = (
            mean_of(evidence, size, variant, "pretraining_flops"),
            mean_of(evidence, size, "dense", "pretraining_flops"),
        )
        loss = estimate(list(column(evidence, size, variant, "pretraining_val_loss").values()))
        seconds = mean_of(evidence, size, variant, "pretraining_seconds")
        rows.append(
            [
                size,
                name,
                f"{short_count(first.parameters or 0)}\n{short_count(first.nonzeros or 0)} non-zero",
                f"{first.linears_share:.0%}",
                short_count(first.tokens) if first.tokens else "0",
                f"{first.tokens_per_parameter:.2f}",
                f"{first.lr:g}" if first.lr else "–",
                (power_label(flops) if flops else "0") + (f"\n{flops / base:.3f}x dense" if flops and base else ""),
                loss.text() if loss else "–",
                duration(seconds) if seconds else "–",
                str(len(known)),
            ]
        )
    return Table(
        "evidence_pretraining",
        "Pre-training of each variant",
        [
            "size",
            "variant",
            "parameters",
            "linears' share of dense FLOPs",
            "tokens",
            "tokens per parameter",
            "peak lr",
            "FLOPs",
            "validation loss",
            "time, estimated",
            "seeds",
        ],
        rows,
        "Mean ± sample deviation (pre-training seeds). Nats per token; FLOPs as the paper counts them. " + TIME_NOTE,
        labels=2,
    )


def score_table(evidence: Evidence) -> Table:
    """The table of results after fine-tuning, with controls, and differences to dense paired by pre-training seed."""
    rows = []
    for size, variant, finetuning in cells_of(evidence):
        cells = [size, described(evidence, size, variant, finetuning)]
        for name, digits in (("bleu", 2), ("e2e_val_loss", 3), ("webnlg_val_loss", 3)):
            value = estimate(list(column(evidence, size, variant, name, finetuning).values()))
            text = NOT_RUN if value is None else value.text(digits)
            against = paired(above_dense(evidence, size, variant, name, finetuning))
            if against is not None and (variant, finetuning) != ("dense", "dense"):
                text += "\n" + interval_text(against, digits).replace("\n", ", ") + " to dense"
            cells.append(text)
        rows.append(cells)
    return Table(
        "evidence_scores",
        "After fine-tuning: each variant and control, and its difference to dense",
        ["size", "variant", "E2E BLEU ↑", "E2E validation loss ↓", "WebNLG validation loss ↓"],
        rows,
        "BLEU of the test set in points; mean ± sample deviation (seeds). Differences are paired by the pre-training "
        "seed, with the 95% interval of their mean. Losses in nats per target token.",
        labels=2,
    )


def claim_table(evidence: Evidence, claim: Claim) -> Table:
    """The table of one hypothesis."""
    digits = 3 if claim.number == 2 else 2
    rows = [
        [
            found.size,
            described(evidence, found.size.partition(" ")[0], found.variant, "dense"),
            interval_text(found.value, digits),
            found.verdict + (f"\n{found.why}" if found.why else ""),
        ]
        for found in findings(evidence, claim)
    ]
    return Table(
        f"evidence_hypothesis_{claim.number}",
        f"Hypothesis {claim.number}: {claim.title}. Verdict: {verdict(findings(evidence, claim))}",
        ["size", "sparsity", claim.measure, "verdict"],
        rows,
        claim.rule + " Undecided with fewer than two seeds." + (scale_text(evidence) if claim.number == 2 else ""),
        labels=2,
    )


def scale_text(evidence: Evidence) -> str:
    """A note with the losses of the dense variant on both tasks, as the scale of their differences in nats."""
    parts = []
    for size in evidence.sizes:
        easy, hard = (mean_of(evidence, size, "dense", name) for name in ("e2e_val_loss", "webnlg_val_loss"))
        if easy is not None and hard is not None:
            parts.append(f"{easy:.2f} on E2E and {hard:.2f} on WebNLG ({size})")
    if not parts:
        return ""
    return (
        f" The scale: dense itself has a loss of {', '.join(parts)}. Differences are in absolute nats and not divided "
        "by these; as a share of the task's own loss the comparison may come out otherwise."
    )


def evidence_tables(evidence: Evidence) -> list[Table]:
    """All tables of the study."""
    claims = [claim_table(evidence, claim) for claim in CLAIMS]
    return [*(table for table in claims if table.rows), score_table(evidence), cost_table(evidence)]


def evidence_plots(evidence: Evidence) -> list[Plot]:
    """A figure per hypothesis, and figures of validation loss over FLOPs and over estimated time per size."""
    plots = []
    for claim in CLAIMS:
        title, panels = f"Hypothesis {claim.number}: {claim.measure}", claim_panels(evidence, claim)
        if panels:
            caption = f"{title}. Mean over the seeds; bars are the 95% interval."
            draw = partial(dot_figure, title, panels)
            plots.append(Plot(f"evidence_hypothesis_{claim.number}", TITLE, caption, draw))
    for size in evidence.sizes:
        for name, title in (("flops", "FLOPs"), ("seconds", "estimated time")):
            lines = loss_lines(evidence, size, name)
            if not lines:
                continue
            scale, unit = time_unit(max(line.x[-1] for line in lines)) if name == "seconds" else (1.0, "")
            shown = [Series(line.label, line.colour, [x / scale for x in line.x], line.y) for line in lines]
            label = f"tokens over median speed, {unit}" if unit else "model FLOPs spent"
            heading = f"{size}: validation loss over {title}"
            draw = partial(line_figure, heading, label, LOSS, shown, points=True)
            caption = f"{size}: pre-training validation loss over {title}; one line per seed."
            caption += f" {TIME_NOTE}" if unit else ""
            draw = draw if unit else partial(draw, x_format=power_label)
            plots.append(Plot(f"evidence_loss_over_{name}_{size}", TITLE, caption, draw))
    return plots


def claim_panels(evidence: Evidence, claim: Claim) -> list[tuple[str, list[Dot]]]:
    """The results of a hypothesis that have a value, with a panel per size."""
    panels: dict[str, list[Dot]] = {}
    colours = variant_colours(list(dict.fromkeys(row.variant for row in evidence.rows)))
    for row in findings(evidence, claim):
        if row.value is None:
            continue
        note = f"{signed(row.value.mean, 3 if claim.number == 2 else 2)} ({row.value.count})"
        name = described(evidence, row.size.partition(" ")[0], row.variant, "dense")
        panels.setdefault(row.size, []).append(
            Dot(name, colours[row.variant], row.value.mean, row.value.half_width, note)
        )
    return list(panels.items())


def loss_lines(evidence: Evidence, size: str, column_name: str) -> list[Series]:
    """One line per variant and seed."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for point in evidence.curves:
        if point.size == size:
            groups.setdefault((point.variant, point.seed), []).append((getattr(point, column_name), point.val_loss))
    colours = variant_colours(list(dict.fromkeys(row.variant for row in evidence.rows)))
    longest: dict[str, int] = {}  # number of validations of a finished run
    for (variant, _), points in groups.items():
        longest[variant] = max(longest.get(variant, 0), len(points))
    return [
        Series(
            variant,
            colours[variant],
            [x for x, _ in points],
            [y for _, y in points],
            whole=len(points) == longest[variant],
        )
        for (variant, _), points in sorted(groups.items())
        if points[-1][0] > 0
    ]


def missing_text(evidence: Evidence) -> list[str]:
    """The unfinished cells, one line per variant and state."""
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for row in evidence.rows:
        if row.state != DONE:
            groups.setdefault((row.size, row.variant, row.finetuning, row.state), []).append(row.seed)
    return [
        f"{size} {described(evidence, size, variant, finetuning)}, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}: {state}"
        for (size, variant, finetuning, state), seeds in groups.items()
    ]


def state_text(evidence: Evidence) -> str:
    """The progress of the study, as a sentence."""
    done, planned = finished(evidence)
    return (
        f"{done} of {planned} cells have run, of those that the plans so far name: a study that is run seed by seed "
        "names its later seeds later."
    )


def verdict_lines(evidence: Evidence) -> list[str]:
    """The verdict on each hypothesis, one line each."""
    return [
        f"Hypothesis {claim.number}, {claim.title[0].lower()}{claim.title[1:]}: {verdict(findings(evidence, claim))}."
        for claim in CLAIMS
    ]


def markdown_table(table: Table) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    for row in table.rows:
        cells = [cell.replace("|", "\\|").replace("\n", "<br>") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_markdown(page: Path, evidence: Evidence, out: Path, command: str) -> str:
    """The text of ``page`` with the study's results between its marks. ``out`` is the folder of the figures.

    Raises UserError when there is no study, or when the page cannot be read or has no marks.
    """
    if not evidence.rows:
        raise UserError("--markdown: there is no evidence study in the folders (variants called SIZE-dense, SIZE-...)")
    figures = Path(os.path.relpath(out.resolve(), page.resolve().parent)).as_posix()
    return page_with(page, markdown(evidence, figures, command))


def markdown(evidence: Evidence, figures: str, command: str) -> str:
    """The results as Markdown. ``figures`` is the path of the figures, relative to the page."""
    names = {plot.name: plot.caption for plot in evidence_plots(evidence)}
    parts = [f"{state_text(evidence)} Made by `{command}`.", ""]
    if evidence.note:
        parts += [evidence.note, ""]
    missing = missing_text(evidence)
    if missing:
        parts += ["Not run, or not to the end:", "", *(f"* {line}" for line in missing), ""]
    for claim in CLAIMS:
        table = claim_table(evidence, claim)
        parts += [f"### Hypothesis {claim.number}: {verdict(findings(evidence, claim))}", "", f"{claim.title}.", ""]
        if table.rows:
            parts += [markdown_table(table), "", table.note, ""]
        parts += image(f"evidence_hypothesis_{claim.number}", names, figures)
    for table in (score_table(evidence), cost_table(evidence)):
        parts += [f"### {table.title}", "", markdown_table(table), "", table.note, ""]
    for name in names:
        if name.startswith("evidence_loss"):
            parts += image(name, names, figures)
    return "\n".join(parts).rstrip() + "\n"


def image(name: str, captions: dict[str, str], figures: str) -> list[str]:
    """The Markdown lines of a figure; empty if it was not drawn."""
    return [f"![{captions[name]}]({figures}/{name}.png)", ""] if name in captions else []


def page_with(page: Path, text: str) -> str:
    """The page with ``text`` between its marks. Raises UserError when it cannot be read or has no marks."""
    try:
        content = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--markdown {page}: cannot be read: {error}") from None
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"--markdown {page}: has no lines '{BEGIN}' and '{END}' to write between")
    return f"{before}{BEGIN}\n{text}{END}{after}"
