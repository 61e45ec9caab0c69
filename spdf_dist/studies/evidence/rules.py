"""The rules of the study: verdicts by Student's interval, and the hypotheses.

The header of ``configs/workflows/study_cpu.yaml`` has the rules; they were fixed before the runs. The unit is the
pre-training seed: variants are compared by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from spdf_dist.base.numbers import signed
from spdf_dist.report.estimates import Estimate, estimate, t_95
from spdf_dist.report.page import NOT_RUN, Table
from spdf_dist.studies.evidence.rows import STUDY, TEXTS

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
MARGIN, TASKS, LEVELS = STUDY["margin"], STUDY["tasks"], STUDY["levels"]
MAX_SEEDS = 1000


def judge(value: Estimate | None, threshold: float, *, above: bool) -> str:
    """The verdict on the claim that the mean is above (or, for ``above`` False, below) ``threshold``.

    It is supported if the whole 95% interval is on that side, not supported if the whole interval is on the other
    side, and undecided otherwise, and with fewer than two pairs.
    """
    if value is None or value.interval is None:
        return UNDECIDED
    low, high = value.interval
    if low > threshold or high < threshold:
        return SUPPORTED if (low > threshold) == above else NOT_SUPPORTED
    return UNDECIDED


def overall(verdicts: Iterable[str]) -> str:
    """The verdict over all rows: not supported if one row is not, supported if all rows are, undecided otherwise."""
    seen = set(verdicts)
    if NOT_SUPPORTED in seen:
        return NOT_SUPPORTED
    return SUPPORTED if seen == {SUPPORTED} else UNDECIDED


def seeds_to_decide(value: Estimate, threshold: float) -> int | None:
    """The smallest number of seeds whose interval would not contain ``threshold``, at the measured mean and deviation.

    None if that takes more than ``MAX_SEEDS``, or without a deviation.
    """
    if value.deviation is None:
        return None
    distance = abs(value.mean - threshold)
    enough = (n for n in range(2, MAX_SEEDS + 1) if t_95(n - 1) * value.deviation / math.sqrt(n) < distance)
    return next(enough, None)


@dataclass(frozen=True)
class Finding:
    """One row of a hypothesis."""

    label: str
    value: Estimate | None
    threshold: float
    above: bool
    """Whether the claim is that the mean is above ``threshold``; else that it is below."""
    remark: str = ""
    """Why there is no value, where seeds have run."""
    control: bool = False
    """Whether the row is shown beside the hypothesis and does not enter its verdict."""

    @property
    def verdict(self) -> str:
        """The verdict by the rule."""
        return judge(self.value, self.threshold, above=self.above)

    @property
    def verdict_text(self) -> str:
        """The verdict; an undecided one with the number of seeds that would decide it."""
        if self.verdict != UNDECIDED:
            return self.verdict
        if self.value is None:
            return f"{UNDECIDED}: {self.remark or NOT_RUN}"
        if self.value.deviation is None:
            return f"{UNDECIDED}: one seed"
        return (
            f"{UNDECIDED}: {seeds_to_decide(self.value, self.threshold) or f'more than {MAX_SEEDS}'} seeds would decide"
        )


@dataclass(frozen=True)
class Hypothesis:
    """A claim with its rows."""

    name: str
    findings: Sequence[Finding]

    @property
    def verdict(self) -> str:
        """The verdict over all rows."""
        return overall(finding.verdict for finding in self.findings if not finding.control)

    @property
    def table(self) -> Table:
        """The rows of the hypothesis."""
        rows = [{"row": row} for row in self.findings]
        return TEXTS.table(f"evidence_{self.name.lower()}", rows, verdict=self.verdict)


def verdict_table(found: Iterable[Hypothesis]) -> Table:
    """The verdict on each hypothesis."""
    rows = []
    for one in found:
        texts = [f"{row.label}: {row.verdict_text}" for row in one.findings if not row.control]
        row = {"hypothesis": one.name, "claim": STUDY["claims"][one.name], "verdict": one.verdict}
        rows.append(row | {"rows": "\n".join(texts)})
    return TEXTS.table("evidence_verdicts", rows)


def interval_text(value: Estimate | None, separator: str = "\n") -> str:
    """Text such as '+0.041 ± 0.022 (3), 95% [-0.014, +0.096]', with ``separator`` for the comma."""
    if value is None:
        return NOT_RUN
    if value.interval is None:
        return f"{signed(value.mean)} (1)"
    low, high = (signed(end) for end in value.interval)
    return f"{value.difference_text()} ({value.count}){separator}95% [{low}, {high}]"


def loss_text(losses: Iterable[float | None], missing: str = NOT_RUN) -> str:
    """Mean and deviation over the seeds."""
    value = estimate(losses)
    return value.text() if value else missing


TEXTS.templates.filters |= {"interval": interval_text, "loss": loss_text}
SENTENCES: Any = TEXTS.templates.get_template("sentences.j2").module
"""Functions that return the sentences of the study."""
