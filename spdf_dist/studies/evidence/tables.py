"""The tables of the evidence study, and sentences about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean

import numpy as np

from spdf_dist.base.numbers import MINUS, power_label, short_count, signed
from spdf_dist.report.figures import Series
from spdf_dist.report.page import NONE, NOT_RUN, Table
from spdf_dist.report.scores import estimate
from spdf_dist.report.style import variant_colours
from spdf_dist.studies.evidence.figures import MARKERS
from spdf_dist.studies.evidence.law import (
    DENSITIES,
    NAMES,
    SHARES,
    WIDTHS,
    Law,
    base_row,
    best_at_budget,
    law_points,
    percentiles,
    predict,
    shape_of,
)
from spdf_dist.studies.evidence.rows import DONE, Evidence, Row
from spdf_dist.studies.evidence.rules import (
    LEVELS,
    MAX_SEEDS,
    METHODS,
    STATIC,
    TASKS,
    Finding,
    Hypothesis,
    Paired,
    against_static,
    inside,
    outside_text,
    paired,
    recovered,
    seeds_to_decide,
    size_multipliers,
    sizes,
)

COLOURS = variant_colours(["dense", "50%", "75%", "87.5%", "93.75%"])
TASK_NAMES = {"e2e": "E2E", "webnlg": "WebNLG"}
STANDARD, ARTEFACT = "standard parameterization", "dense, embeddings at 4 x the rate"
RATE_PANELS = {
    "SuPar": (("dense", "sweep", ""), ("75%", "optimum-supar", "")),
    STANDARD: (("dense", "optimum-standard", "dense"), ("75%", "optimum-standard", "s75"), (ARTEFACT, "artefact", "")),
}
"""Label, job and variant of each line of loss over the learning rate, by parameterization."""
PARAMETERS = {
    "E": "loss of an infinite model with infinite data",
    "A": "loss of size at 1e5 weights",
    "alpha": "power of size",
    "B": "loss of data at 1M tokens",
    "beta": "power of data",
    "gamma": "cost of sparsity: 0 none, 1 only non-zeros count",
}


def interval_text(value: Paired | None, digits: int = 3) -> str:
    """Text such as '+0.041 ± 0.022 (3), 95% [-0.014, +0.096]', with a line break for the comma."""
    if value is None:
        return NOT_RUN
    text = signed(value.mean, digits)
    if value.deviation is None or value.interval is None:
        return f"{text} (1)"
    low, high = (signed(end, digits) for end in value.interval)
    return f"{text} ± {value.deviation:.{digits}f} ({value.count})\n95% [{low}, {high}]"


def loss_text(losses: Iterable[float | None], missing: str = NOT_RUN) -> str:
    """Mean and deviation over the seeds."""
    value = estimate(losses)
    return value.text() if value else missing


def verdict_table(found: Sequence[Hypothesis]) -> Table:
    """The verdict on each hypothesis."""
    rows = [
        [
            one.name,
            one.title[0].upper() + one.title[1:],
            one.verdict,
            "\n".join(f"{finding_name(row)}: {row.verdict_text}" for row in one.findings if not row.control),
        ]
        for one in found
    ]
    note = "Not supported if one row is not, supported if all rows are."
    return Table("evidence_verdicts", "Verdicts", ["hypothesis", "claim", "verdict", "rows"], rows, note, labels=2)


def finding_name(row: Finding) -> str:
    """The labels of a row, such as `E2E, 75%`."""
    return ", ".join(TASK_NAMES.get(label, label) for label in row.labels)


def hypothesis_table(one: Hypothesis) -> Table:
    """The rows of a hypothesis."""
    rows = [[finding_name(row), interval_text(row.value), row.verdict_text] for row in one.findings]
    name = f"evidence_{one.name.lower()}"
    note = f"{one.rule} Mean ± sample deviation (seeds), paired by the pre-training seed."
    return Table(name, f"{one.name}: {one.verdict}", ["", one.measure, "verdict"], rows, note)


def tuned_table(evidence: Evidence) -> Table:
    """Losses after fine-tuning, with controls."""
    rows = []
    for task in TASKS:
        dense = evidence.losses(f"{task}-20", "dense")
        cells = [("no pre-training", f"{task}-untrained", ""), ("dense", f"{task}-20", "dense")]
        cells += [(level, f"{task}-20", variant) for variant, level in LEVELS.items()]
        if task == "e2e" and evidence.of("e2e-masked", "s75"):
            cells.append(("75%, fine-tuned under its mask", "e2e-masked", "s75"))
        for name, job, variant in cells:
            losses = evidence.losses(job, variant)
            against = interval_text(paired(losses - dense)) if name != "dense" else NONE
            sparse = job == f"{task}-20" and variant != "dense"
            share = loss_text(recovered(evidence, task, variant)) if sparse else NONE
            rows.append([TASK_NAMES[task], name, loss_text(losses), against, share])
    header = ["task", "pre-training", "validation loss ↓", "minus dense", "recovered share R"]
    note = "Nats per target token, 20 tokens per parameter, width 64. Mean ± sample deviation (seeds)."
    return Table("evidence_tuned", "Losses after fine-tuning", header, rows, note, labels=2)


def size_table(evidence: Evidence) -> Table:
    """Losses at each size for H3."""
    rows = []
    for tuned, what in ((False, "pre-training"), (True, "E2E")):
        found = sizes(evidence, tuned=tuned)
        multipliers, linear = size_multipliers(found), size_multipliers(found, linear=True)
        for size in found:
            values = multipliers.get(size.width, {})
            outside = outside_text(values)
            row = {
                "loss of": what,
                "width: parameters": f"{size.width}: {short_count(size.parameters)}",
                "dense": loss_text(size.dense),
                "75%": loss_text(size.sparse),
                "75% minus dense": interval_text(paired(size.sparse - size.dense)),
                "m": loss_text(inside(values), NONE) + (f"\n{outside}" if outside else ""),
                "m, linear layers only": loss_text(inside(linear.get(size.width, {})), NONE),
            }
            rows.append(row)
    note = (
        "10 tokens per parameter. m interpolates the dense curve of the same seed, log loss over log size, and is not "
        "extrapolated. After fine-tuning the curve has only the two larger sizes."
    )
    return Table.of("evidence_sizes", "Losses by size", rows, note, labels=2)


def rate_lines(evidence: Evidence) -> list[tuple[str, list[Series]]]:
    """Loss over the peak learning rate, by parameterization."""
    base = base_row(evidence)
    panels = []
    for name, cells in RATE_PANELS.items():
        lines = []
        for k, (label, job, variant) in enumerate(cells):
            found = sorted(
                (row.lr, row.loss)
                for row in evidence.rows
                if (row.job, row.variant, row.state) == (job, variant, DONE)
                and row.lr is not None
                and row.loss is not None
                and (job != "sweep" or (base is not None and row.init_std == base.init_std))
            )
            if found:
                colour = COLOURS.get(label, variant_colours(["paper"])["paper"])
                x, y = zip(*found, strict=True)
                lines.append(Series(label, colour, x, y, dash=k, marker=MARKERS[k]))
        if lines:
            panels.append((name, lines))
    return panels


def optimum(line: Series) -> tuple[float, bool]:
    """The best rate, from a parabola in log rate through the best point and its neighbours; whether it is inside."""
    best = int(np.argmin(line.y))
    if best in (0, len(line.x) - 1):
        return line.x[best], False
    x, y = np.log(line.x[best - 1 : best + 2]), line.y[best - 1 : best + 2]
    second, first, _ = np.polyfit(x - x[1], y, 2)
    return float(line.x[best] * math.exp(-first / (2 * second))), True


def rate_table(evidence: Evidence) -> Table:
    """The best rate of each line of the figure of rates, and the rule of weight decay."""
    rows = []
    for name, lines in rate_lines(evidence):
        for line in lines:
            best = int(np.argmin(line.y))
            rate, is_inside = optimum(line)
            place = f"{rate:.2g}" if is_inside else "at the end of the grid"
            rows.append([name, line.label, f"{line.x[best]:g}", place, f"{line.y[best]:.3f}"])
    for row in evidence.of("decay-rule"):
        rows.append(["SuPar", "75%, rate times decay kept", f"{row.lr:g}", NONE, f"{row.loss:.3f}"])
    header = ["parameterization", "model", "best rate of the grid", "optimum by a parabola", "loss there"]
    note = "Validation loss of pre-training at 5 tokens per parameter, width 64, one seed."
    return Table("evidence_rates", "Learning rates", header, rows, note, labels=2)


def rate_text(evidence: Evidence) -> str:
    """Sentences on how far the optimum moves from dense to 75%, on the artefact and on weight decay."""
    panels, parts = dict(rate_lines(evidence)), []
    for name, lines in panels.items():
        by_label = {line.label: line for line in lines}
        if {"dense", "75%"} <= by_label.keys():
            (dense, in_dense), (sparse, in_sparse) = optimum(by_label["dense"]), optimum(by_label["75%"])
            end = "" if in_dense and in_sparse else " (one is an end of the grid)"
            factor = f"{sparse / dense:.2g}"
            parts.append(f"From dense to 75% the best rate changes by a factor of {factor} with {name}{end}.")
            gap = min(by_label["75%"].y) - min(by_label["dense"].y)
            parts.append(f"Each at its best rate, 75% is {signed(gap)} nats from dense with {name}.")
    standard = {line.label: line for line in panels.get(STANDARD, [])}
    artefact = standard.get(ARTEFACT)
    if artefact and {"dense", "75%"} <= standard.keys():
        dense, best, sparse = (min(line.y) for line in (standard["dense"], artefact, standard["75%"]))
        parts.append(
            f"The artefact: dense at its best single rate has {dense:.3f}, with embeddings at four times the rate "
            f"{best:.3f}; 75% at its best single rate has {sparse:.3f}."
        )
    for row in evidence.of("decay-rule"):
        for other in (one for one in evidence.rows if (one.job, one.lr, one.state) == ("optimum-supar", row.lr, DONE)):
            parts.append(
                f"Weight decay at 75%: {other.loss:.3f} with one decay for all weights, {row.loss:.3f} with rate times "
                "decay kept."
            )
    return " ".join(parts)


def equal_rows(evidence: Evidence, name: str) -> list[Row]:
    """The rows of a method, of the seeds that static 75% is compared at."""
    seeds = {row.seed for row in evidence.rows if row.job == "dense-equal"}
    return [row for row in evidence.of(*METHODS[name]) if row.seed in seeds]


def reading(value: Paired | None) -> str:
    """What a difference to static 75% says."""
    if value is None or value.interval is None:
        return NONE
    low, high = value.interval
    if low > 0 or high < 0:
        return "worse" if low > 0 else "better"
    seeds = seeds_to_decide(value, 0.0)
    return f"undecided: {seeds or f'more than {MAX_SEEDS}'} seeds would decide"


def equal_table(evidence: Evidence) -> Table:
    """Methods at equal training FLOPs."""
    rows = []
    for name, place in METHODS.items():
        found = equal_rows(evidence, name)
        if not found:
            rows.append([name, *[NOT_RUN] * 6])
            continue
        flops, tokens = (mean(getattr(row, column) or 0.0 for row in found) for column in ("flops", "tokens"))
        value = None if place == STATIC else against_static(evidence, name)
        cost = [str(found[0].width), power_label(flops), short_count(tokens), loss_text(row.loss for row in found)]
        rows.append([name, *cost, NONE if place == STATIC else interval_text(value), reading(value)])
    header = ["method", "width", "FLOPs spent", "tokens", "validation loss ↓", "minus static 75%", "reading"]
    note = (
        "FLOPs as the trainer counted them, both phases and the dense gradients of updates "
        "included. Better or worse: the 95% interval does not contain 0."
    )
    return Table("evidence_equal_flops", "Methods at equal FLOPs", header, rows, note)


def law_tables(evidence: Evidence, law: Law) -> list[Table]:
    """The fitted parameters, the points, and the budgets."""
    found = [(name, PARAMETERS[name], law.value(name), *law.interval(name), law.identified(name)) for name in NAMES]
    for density in (0.5, 0.25):
        others = ", ".join(f"{who} {share(density):.2f}" for who, share in SHARES.items())
        text = f"share of its size that {1 - density:.0%} is worth ({others})"
        found.append((f"{density}^gamma", text, *law.share(density), law.identified("gamma")))
    rows = [
        [name, text, f"{value:.3f}", f"[{low:.3f}, {high:.3f}]", "yes" if identified else "no"]
        for name, text, value, low, high, identified in found
    ]
    note = (
        "L = E + A (N density^gamma / 1e5)^-alpha + B (D / 1e6)^-beta, N the weights of the linear layers with pruned "
        f"ones, D tokens. {len(law.points)} points; residuals of {law.deviation:.3f} nats; residual bootstrap. "
        "Identified: the interval is narrower than the value and reaches no bound of the search."
    )
    header = ["parameter", "meaning", "value", "95%", "identified"]
    tables = [Table("evidence_law", "Scaling law", header, rows, note, labels=2)]
    rows = []
    for held_out in (False, True):
        for point in law_points(evidence, held_out):
            fitted = float(predict(law.best, point.weights, point.tokens, point.density ** law.best[-1]))
            rows.append(
                [
                    f"{point.width}", f"{point.density:.4g}", short_count(point.tokens), power_label(point.flops),
                    f"{point.loss:.3f} ({point.seeds})", f"{fitted:.3f}", signed(point.loss - fitted),
                    "test" if held_out else "fit",
                ]
            )  # fmt: skip
    header = ["width", "density", "tokens", "FLOPs", "loss (seeds)", "law", "difference", "part"]
    tables.append(Table("evidence_law_points", "Points of the law", header, rows, labels=3))
    return tables


def budgets_of(law: Law) -> tuple[float, float]:
    """The smallest and the largest FLOPs of the points."""
    return min(point.flops for point in law.points), max(point.flops for point in law.points)


def budget_table(evidence: Evidence, law: Law) -> list[Table]:
    """The loss against dense at equal FLOPs, each at its best width."""
    shape = shape_of(evidence)
    if shape is None:
        return []
    budgets = np.geomspace(*budgets_of(law), 4)
    both = np.concatenate([law.best[None], law.samples])
    dense, widths = best_at_budget(both, shape, budgets, 1.0, 1.0)
    rows = [[power_label(float(f"{c:.1e}")), f"{dense[0, k]:.3f}\nwidth {widths[0, k]}"] for k, c in enumerate(budgets)]
    for density in DENSITIES[1:]:
        losses, widths = best_at_budget(both, shape, budgets, density, density ** both[:, -1])
        for k, row in enumerate(rows):
            gains = (losses - dense)[:, k]
            low, high = (signed(end) for end in percentiles(gains[1:]))
            row.append(f"{signed(gains[0])}\n95% [{low}, {high}]\nwidth {widths[0, k]}")
    header = ["FLOPs", "dense", *(f"{100 * (1 - density):g}%" for density in DENSITIES[1:])]
    note = (
        f"Predicted loss of dense and differences to it, in nats, each at its best width from {WIDTHS[0]} to "
        f"{WIDTHS[-1]}. FLOPs include logits and attention, which sparsity does not reduce. The law extrapolates where "
        "a width or a length lies outside of the points below."
    )
    return [Table("evidence_budgets", "Which density at a FLOP budget", header, rows, note)]


def law_text(evidence: Evidence, law: Law) -> str:
    """Sentences with the best density of each budget, what the points identify, and the test of the law."""
    parts = []
    for table in budget_table(evidence, law):
        gains = [[float(cell.split("\n")[0].replace(MINUS, "-")) for cell in row[2:]] for row in table.rows]
        best = [
            f"{table.header[2 + int(np.argmin(row))]} ({signed(min(row))} nats)" if min(row) < 0 else "dense"
            for row in gains
        ]
        choices = ", ".join(f"{row[0]} {choice}" for row, choice in zip(table.rows, best, strict=True))
        parts.append(f"The best predicted sparsity per FLOP budget: {choices}.")
    known = [name for name in NAMES if law.identified(name)]
    parts.append(f"The points identify {', '.join(known) or 'no parameter'} of {', '.join(NAMES)}.")
    for point in law_points(evidence, held_out=True):
        fitted = float(predict(law.best, point.weights, point.tokens, point.density ** law.best[-1]))
        parts.append(
            f"Test: the law predicts {fitted:.3f} for width {point.width} at density {point.density:g}, which the fit "
            f"does not contain; the runs have {point.loss:.3f}."
        )
    return " ".join(parts)
