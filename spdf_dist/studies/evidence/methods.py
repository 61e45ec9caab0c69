"""Methods and block patterns at equal training FLOPs, against static unstructured 75%."""

from __future__ import annotations

import pandas as pd

from spdf_dist.report.estimates import Estimate, paired
from spdf_dist.report.page import NONE, Plot, Table
from spdf_dist.studies.evidence.losses import COLOURS, difference_plot
from spdf_dist.studies.evidence.rows import STUDY, TEXTS, Evidence
from spdf_dist.studies.evidence.rules import MARGIN, NOT_SUPPORTED, SUPPORTED, Finding

METHODS: dict[str, list[str]] = STUDY["methods"]
"""Grid point of each method, by its name."""
STATIC: str = STUDY["static"]


def against_static(evidence: Evidence, name: str) -> Estimate | None:
    """The validation loss of a method minus that of static 75%, paired by seed."""
    return paired(evidence.losses(*METHODS[name]), evidence.losses(*METHODS[STATIC]))


def blocks_lose_little(evidence: Evidence) -> list[Finding]:
    """H1's rule for each block pattern against static unstructured 75%."""
    names = [name for name, (job, _, _) in METHODS.items() if job == "blocks"]
    return [Finding(name, against_static(evidence, name), MARGIN, above=False) for name in names]


def equal_rows(evidence: Evidence, name: str) -> pd.DataFrame:
    """The rows of a method, of the seeds that static 75% is compared at."""
    rows = evidence.at(*METHODS[name])
    return rows[rows.seed.isin(evidence.rows[evidence.rows.job == "dense-equal"].seed)]


def reading(value: Estimate | None) -> str:
    """What a difference to static 75% says: better or worse if its interval does not contain 0."""
    if value is None or value.interval is None:
        return NONE
    found = Finding("", value, 0.0, above=True)
    return {SUPPORTED: "worse", NOT_SUPPORTED: "better"}.get(found.verdict, found.verdict_text)


def equal_table(evidence: Evidence) -> Table:
    """Methods at equal training FLOPs."""
    rows = []
    for name in METHODS:
        found, value = equal_rows(evidence, name), against_static(evidence, name)
        row = {"name": name, "has_run": len(found) > 0, "is_static": name == STATIC, "width": found.width.max()}
        row |= {"flops": found.flops.mean(), "tokens": found.tokens.mean(), "losses": found.loss}
        rows.append(row | {"difference": value, "reading": reading(value)})
    return TEXTS.table("evidence_equal_flops", rows)


def equal_plot(evidence: Evidence) -> list[Plot]:
    """The differences to static 75% at equal FLOPs."""
    values = [
        (name, COLOURS["dense" if job == "dense-equal" else "75%"], against_static(evidence, name))
        for name, (job, _, _) in METHODS.items()
        if name != STATIC
    ]
    return difference_plot("evidence_equal_flops", "validation loss minus static 75%, nats (left: better)", values)
