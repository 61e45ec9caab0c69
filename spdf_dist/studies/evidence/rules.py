"""The rules of the study: paired differences, Student's interval, verdicts, and the hypotheses.

The header of ``configs/workflows/study_cpu.yaml`` has the rules; they were fixed before the runs. The unit is the
pre-training seed: variants are compared by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from spdf_dist.report.scores import Estimate, estimate
from spdf_dist.studies.evidence.rows import Evidence

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
MARGIN = 0.025
"""Acceptable increase of the validation loss in nats per target token, for H1 and for blocks."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom."""
Z_95 = 1.959964
MAX_SEEDS = 1000
TASKS = ("e2e", "webnlg")
LEVELS = {"s50": "50%", "s75": "75%"}


def t_95(freedom: int) -> float:
    """Two-sided 95% quantile of Student's t; above the table an expansion (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    z = Z_95
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))


class Paired(Estimate):
    """Mean and sample deviation of differences by seed."""

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95% confidence interval of the mean; None for a single pair."""
        return None if self.deviation is None else t_95(self.count - 1) * self.deviation / math.sqrt(self.count)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval of the mean; None for a single pair."""
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)


def paired(differences: Iterable[float]) -> Paired | None:
    """Mean and deviation of differences by seed; None without any."""
    value = estimate(differences)
    return Paired(value.mean, value.deviation, value.count) if value else None


def judge(value: Paired | None, threshold: float, *, above: bool) -> str:
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


def seeds_to_decide(value: Paired, threshold: float) -> int | None:
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

    labels: tuple[str, ...]
    value: Paired | None
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
        if self.remark or self.value is None:
            return f"{UNDECIDED}: {self.remark or 'not run'}"
        if self.value.deviation is None:
            return f"{UNDECIDED}: one seed"
        seeds = seeds_to_decide(self.value, self.threshold)
        return f"{UNDECIDED}: {f'{seeds} seeds' if seeds else f'more than {MAX_SEEDS} seeds'} would decide"


def little_is_lost(evidence: Evidence) -> list[Finding]:
    """H1: the increase of the loss after dense fine-tuning against dense, by task and level."""
    return [
        Finding(
            (task, level),
            paired(evidence.losses(f"{task}-20", variant) - evidence.losses(f"{task}-20", "dense")),
            MARGIN,
            above=False,
        )
        for task in TASKS
        for variant, level in LEVELS.items()
    ]


def recovered(evidence: Evidence, task: str, variant: str) -> pd.Series:
    """By seed: the share of the gain of dense pre-training that a variant keeps after fine-tuning.

    R = (untrained - variant) / (untrained - dense). The loss without pre-training is the mean over its seeds.
    """
    untrained = evidence.losses(f"{task}-untrained").mean()
    dense, ours = evidence.losses(f"{task}-20", "dense"), evidence.losses(f"{task}-20", variant)
    return ((untrained - ours) / (untrained - dense)).dropna()


def easy_tasks_lose_less(evidence: Evidence) -> list[Finding]:
    """H2: the recovered share on E2E minus that on WebNLG, by level."""
    findings = []
    for variant, level in LEVELS.items():
        easy, hard = (recovered(evidence, task, variant) for task in TASKS)
        findings.append(Finding((level,), paired(easy - hard), 0.0, above=True))
    return findings


SIZES = (("cooldown-32", "length=10", ""), ("cooldown-10", "", "e2e-10"), ("cooldown-96", "", "e2e-96"))
"""Job, cell and fine-tuning job of each model size at 10 tokens per parameter, smallest first."""


@dataclass(frozen=True)
class Size:
    """The losses of one model size at 10 tokens per parameter, by seed."""

    width: int
    parameters: int
    linear: int
    """Weights of the linear layers."""
    dense: pd.Series
    sparse: pd.Series


def sizes(evidence: Evidence, variant: str = "s75", tuned: bool = False) -> list[Size]:
    """The sizes with finished dense runs, smallest first. ``tuned``: after fine-tuning on E2E."""
    found = []
    for pretrain, cell, finetune in SIZES:
        job = finetune if tuned else pretrain
        place = "" if tuned else cell
        dense = evidence.of(job, "dense", place) if job else []
        if dense and dense[0].width and dense[0].parameters and dense[0].linear:
            losses = evidence.losses(job, "dense", place), evidence.losses(job, variant, place)
            found.append(Size(dense[0].width, dense[0].parameters, dense[0].linear, *losses))
    return found


BELOW, ABOVE = "smaller than the smallest dense model", "larger than the largest dense model"


def equal_size(curve: list[tuple[float, float]], loss: float) -> float | str:
    """The size of the dense model of equal loss, by log-log interpolation; where it lies if outside of the curve.

    Args:
        curve: (size, loss) with at least two points.
        loss: the loss to look up.
    """
    points = sorted(curve)
    for (small, high), (large, low) in pairwise(points):
        if low <= loss <= high:
            share = math.log(high / loss) / math.log(high / low) if high > low else 0.0
            return small * (large / small) ** share
    return BELOW if loss > max(height for _, height in points) else ABOVE


def size_multipliers(found: list[Size], linear: bool = False) -> dict[int, dict[int, float | str]]:
    """By width and seed: the size of the dense model of equal loss over the size, for seeds with a dense curve.

    The size is the number of parameters; with ``linear``, that of the weights of the linear layers.
    """
    result: dict[int, dict[int, float | str]] = {}
    count = {size.width: float(size.linear if linear else size.parameters) for size in found}
    for size in found:
        for seed, loss in size.sparse.items():
            curve = [(count[other.width], other.dense[seed]) for other in found if seed in other.dense]
            if len(curve) > 1:
                value = equal_size(curve, loss)
                result.setdefault(size.width, {})[seed] = value if isinstance(value, str) else value / count[size.width]
    return result


def inside(values: Mapping[int, float | str]) -> pd.Series:
    """The values that lie on the curve."""
    return pd.Series({seed: value for seed, value in values.items() if not isinstance(value, str)}, dtype=float)


def outside_text(values: Mapping[int, float | str]) -> str:
    """A remark with the number of seeds whose value lies outside of the curve; empty without any."""
    places = [value for value in values.values() if isinstance(value, str)]
    return "; ".join(f"{places.count(place)} of {len(values)} seeds {place}" for place in dict.fromkeys(places))


def large_models_lose_less(evidence: Evidence) -> list[Finding]:
    """H3: the multiplier m at the largest width minus that at the middle width, for 75%.

    The second row counts only the weights of the linear layers. The embeddings' share of the parameters falls with the
    width; if a sparse model is worth the same share of its linear layers at every width, m of all parameters falls too.
    """
    findings = []
    for linear in (False, True):
        what = "75%, linear layers only" if linear else "75%, all parameters"
        found = size_multipliers(sizes(evidence), linear)
        widths = sorted(found)[-2:]
        remark, value = "", None
        if len(sizes(evidence)) == len(SIZES) and len(widths) == 2:
            middle, large = (found[width] for width in widths)
            remark = "; ".join(f"width {w}: {text}" for w in widths if (text := outside_text(found[w])))
            value = None if remark else paired(inside(large) - inside(middle))
        findings.append(Finding((what,), value, 0.0, above=True, remark=remark, control=linear))
    return findings


STATIC = ("cooldown-10", "s75", "")
"""The reference of the methods at equal FLOPs: static unstructured 75%."""
METHODS = {
    "dense, fewer steps": ("dense-equal", "", ""),
    "75% static": STATIC,
    "75%, 8 blocks per side": ("blocks", "", "pattern=side8"),
    "75%, 8 blocks per side, permuted": ("blocks", "", "pattern=side8-permuted"),
    "75%, 16 blocks per side": ("blocks", "", "pattern=side16"),
    "75%, 16 blocks per side, permuted": ("blocks", "", "pattern=side16-permuted"),
    "RigL 75%": ("rigl", "", ""),
    "GMP to 75%": ("gmp", "", ""),
    "wide, 75%": ("wide", "", ""),
    "variable, 90% then dense": ("variable-dense", "", ""),
}
"""Job, variant and cell of each method, by its name."""


def against_static(evidence: Evidence, name: str) -> Paired | None:
    """The validation loss of a method minus that of static 75%, paired by seed."""
    return paired(evidence.losses(*METHODS[name]) - evidence.losses(*STATIC))


def blocks_lose_little(evidence: Evidence) -> list[Finding]:
    """H1's rule for each block pattern against static unstructured 75%."""
    names = [name for name, (job, _, _) in METHODS.items() if job == "blocks"]
    return [Finding((name,), against_static(evidence, name), MARGIN, above=False) for name in names]


@dataclass(frozen=True)
class Hypothesis:
    """A claim with its rows."""

    name: str
    title: str
    measure: str
    rule: str
    findings: list[Finding]

    @property
    def verdict(self) -> str:
        """The verdict over all rows."""
        return overall(finding.verdict for finding in self.findings if not finding.control)


def hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """The study's hypotheses with their findings."""
    margin = f"+{MARGIN} nats"
    return [
        Hypothesis(
            "H1",
            "little is lost: sparse pre-training with dense fine-tuning loses less than " + margin,
            "loss after fine-tuning minus dense, nats",
            f"Supported if the 95% interval lies below {margin}, not supported if it lies above.",
            little_is_lost(evidence),
        ),
        Hypothesis(
            "H2",
            "easy tasks lose less: sparse pre-training keeps a larger share of its gain on E2E than on WebNLG",
            "R(E2E) minus R(WebNLG)",
            "R = (untrained - variant) / (untrained - dense), the untrained loss a mean over its seeds. Supported if "
            "the 95% interval lies above 0, not supported if it lies below.",
            easy_tasks_lose_less(evidence),
        ),
        Hypothesis(
            "H3",
            "large models lose less: a 75% sparse model is worth a larger share of its size in a larger model",
            "m(width 96) minus m(width 64)",
            "m = size of the dense model of equal pre-training loss / size, at 10 tokens per parameter. Supported if "
            "the 95% interval lies above 0, not supported if it lies below. The verdict is that of all parameters.",
            large_models_lose_less(evidence),
        ),
        Hypothesis(
            "Blocks",
            f"75% in blocks loses less than {margin} against unstructured 75%",
            "pre-training loss minus unstructured, nats",
            f"Supported if the 95% interval lies below {margin}, not supported if it lies above.",
            blocks_lose_little(evidence),
        ),
    ]
