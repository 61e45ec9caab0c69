"""H1 and H2: the losses after fine-tuning, against dense and as a share of the gain of pre-training."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from spdf_dist.base.numbers import signed
from spdf_dist.report.estimates import Estimate, paired
from spdf_dist.report.figures import Dot, dot_figure
from spdf_dist.report.page import Plot, Table
from spdf_dist.report.style import variant_colours
from spdf_dist.studies.evidence.rows import TEXTS, Evidence
from spdf_dist.studies.evidence.rules import LEVELS, MARGIN, TASKS, Finding

COLOURS = variant_colours(["dense", "50%", "75%", "87.5%", "93.75%"])


def little_is_lost(evidence: Evidence) -> list[Finding]:
    """H1: the increase of the loss after dense fine-tuning against dense, by task and level."""
    findings = []
    for task, title in TASKS.items():
        dense = evidence.losses(f"{task}-20", "dense")
        for variant, level in LEVELS.items():
            lost = paired(evidence.losses(f"{task}-20", variant), dense)
            findings.append(Finding(f"{title}, {level}", lost, MARGIN, above=False))
    return findings


def recovered(evidence: Evidence, task: str, variant: str) -> pd.Series:
    """By seed: the share of the gain of dense pre-training that a variant keeps after fine-tuning.

    R = (untrained - variant) / (untrained - dense). The loss without pre-training is the mean over its seeds.
    """
    untrained = evidence.losses(f"{task}-untrained").mean()
    gains = (untrained - evidence.losses(f"{task}-20", name) for name in (variant, "dense"))
    return (next(gains) / next(gains)).dropna()


def easy_tasks_lose_less(evidence: Evidence) -> list[Finding]:
    """H2: the recovered share on E2E minus that on WebNLG, by level."""
    findings = []
    for variant, level in LEVELS.items():
        easy, hard = (recovered(evidence, task, variant) for task in TASKS)
        findings.append(Finding(level, paired(easy, hard), 0.0, above=True))
    return findings


def tuned_table(evidence: Evidence) -> Table:
    """Losses after fine-tuning, with controls."""
    rows = []
    for task, title in TASKS.items():
        points = {"no pre-training": (f"{task}-untrained", ""), "dense": (f"{task}-20", "dense")}
        points |= {level: (f"{task}-20", variant) for variant, level in LEVELS.items()}
        if task == "e2e" and len(evidence.at("e2e-masked", "s75")):
            points["75%, fine-tuned under its mask"] = ("e2e-masked", "s75")
        for name, (job, variant) in points.items():
            losses, dense = evidence.losses(job, variant), evidence.losses(*points["dense"])
            share = recovered(evidence, task, variant) if name in LEVELS.values() else None
            row = {"task": title, "name": name, "losses": losses, "difference": paired(losses, dense), "share": share}
            rows.append(row)
    return TEXTS.table("evidence_tuned", rows)


def difference_plot(key: str, axis: str, values: Iterable[tuple[str, str, Estimate | None]]) -> list[Plot]:
    """Differences with their 95% intervals beside 0 and the margin, by label and colour; no figure without any."""
    dots = [Dot(name, colour, one.mean, one.half_width, signed(one.mean)) for name, colour, one in values if one]
    return [TEXTS.plot(key, dot_figure, [(axis, dots)], (0.0, MARGIN), margin=MARGIN)] if dots else []


def lost_plot(evidence: Evidence) -> list[Plot]:
    """The differences to dense after fine-tuning."""
    values = [(row.label, COLOURS[row.label.rpartition(", ")[2]], row.value) for row in little_is_lost(evidence)]
    return difference_plot("evidence_h1", "validation loss minus dense, nats per target token", values)
