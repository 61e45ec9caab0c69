"""Variants: groups of runs that differ only in their seeds, their names, and the dense variant to compare each with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, TypeVar

import pandas as pd

from spdf_dist.config.schema import ModelConfig
from spdf_dist.report.runs import Run

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
MAX_DIFFERENCES = 4
"""Maximum number of differing keys in a name."""


def group_by(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by their keys, in order of appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


@dataclass
class Variant:
    """Pre-training runs of one size and name. Numbers are means over ``runs``."""

    size: str
    name: str
    members: list[Run]
    finetuning: list[Run]
    """The fine-tuning runs from this size and variant."""
    base: Variant | None = None
    """The finished dense variant to compare with; None where there is none, or where this variant is unfinished."""

    @property
    def runs(self) -> list[Run]:
        """The runs to compare: the finished ones, or all runs if none is finished."""
        return [run for run in self.members if run.finished] or self.members

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def model(self) -> ModelConfig:
        """The architecture."""
        assert self.first.model is not None  # a pre-training run has one
        return self.first.model

    @property
    def flops(self) -> float:
        """Model FLOPs of pre-training."""
        return mean(run.last("flops") for run in self.runs)

    def finetuning_flops(self, task: str) -> float:
        """Model FLOPs of one dense fine-tuning on a task; 0 without a finished one."""
        runs = [run for run in self.finetuning if run.task == task and run.finished and not run.keep_mask]
        flops = [run.last("flops") for run in runs if len(run.curve)]
        return mean(flops) if flops else 0.0

    @property
    def losses(self) -> pd.Series:
        """The last validation losses in nats per token, with the seeds as index."""
        seeds = [run.config.seed for run in self.runs]
        return pd.Series([run.final_validation for run in self.runs], seeds, dtype=float)

    @property
    def speed(self) -> float | None:
        """Median tokens/s of a run; None without steps."""
        speeds = [speed for run in self.runs if (speed := run.median_speed)]
        return mean(speeds) if speeds else None


def group_variants(runs: Iterable[Run], finetuning: Iterable[Run]) -> list[Variant]:
    """The variants of pre-training runs, in order of appearance, with their fine-tuning runs."""
    groups, tuned = (group_by(some, lambda run: (run.size(), run.variant)) for some in (runs, finetuning))
    variants = [Variant(*key, members, tuned.get(key, [])) for key, members in groups.items()]
    for variant in variants:
        alike = {other.name: other for other in variants if other.size == variant.size}
        base = alike.get(dense_baseline(variant.name, {name: other.first for name, other in alike.items()}))
        if base is not None and base.first.finished and variant.first.finished:
            variant.base = base
    return variants


def dense_baseline(name: str, runs: Mapping[str, Run]) -> str:
    """The name of the dense run to compare ``name`` with; empty where there is none or it is ambiguous.

    Of several dense runs, it is the one whose other settings equal those of ``name``, else the one with a plain name,
    such as ``dense`` rather than ``stopped``.
    """
    dense = [other for other, run in runs.items() if run.is_dense and not run.keep_mask]
    equal = [other for other in dense if other != name and other_settings(runs[other]) == other_settings(runs[name])]
    if len(dense) < 2 or len(equal) == 1:
        return next((other for other in equal or dense if other != name), "")
    plain = [other for other in dense if "," not in other and (other.startswith("dense") or other.endswith("-dense"))]
    best = min(plain, key=lambda other: other != "dense" and not other.endswith("-dense"), default="")
    return best if best != name else ""


def other_settings(run: Run) -> dict[str, object]:
    """The settings of a run and of its pre-training, except those of sparsity."""
    own: dict[str, object] = {key: value for key, value in run.settings.items() if not key.startswith("sparsity.")}
    return own | ({"parent": other_settings(run.parent)} if run.parent else {})


def difference_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each settings, the keys and values in which the settings differ, such as 'lr 0.001, tensor 2'.

    All texts are empty when the settings are equal.
    """
    keys = dict.fromkeys(key for one in settings for key in one)
    differing = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    last = [key.rpartition(".")[2] for key in differing]
    names = {key: short if last.count(short) == 1 else key for key, short in zip(differing, last, strict=True)}
    shown = differing[:MAX_DIFFERENCES]
    more = [f"{len(differing) - len(shown)} more"] if len(differing) > len(shown) else []
    return [", ".join([f"{names[key]} {value_text(one.get(key))}" for key in shown] + more) for one in settings]


def value_text(value: Any) -> str:
    """A config value as part of a name. Of a path, it is the last part."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).rpartition("/")[2]


def name_variants(runs: Sequence[Run]) -> None:
    """Set ``variant`` of every run. Pre-training runs are named first, because fine-tuning runs inherit their names.

    A run that repeats another one, with equal settings and seeds, has its folder in its name.
    """
    for finetuning in (False, True):
        chosen = [run for run in runs if run.is_finetuning == finetuning]
        for run in chosen:
            run.variant = base_name(run)
        groups = group_by(chosen, lambda run: (run.size(), run.variant, run.task, run.keep_mask, run.rejected))
        for group in groups.values():
            seen: set[Hashable] = set()
            for run, difference in zip(group, difference_names([run.settings for run in group]), strict=True):
                run.variant += f", {difference}" if difference else ""
                key = (run.variant, repr(run.seeds))
                run.variant += f", again in {run.path.name}" if key in seen else ""
                seen.add(key)


def base_name(run: Run) -> str:
    """The name without differences: that of the user or workflow, else that of the parent, else from the config."""
    parent = run.parent if run.is_finetuning else None
    if run.label and (parent is None or parent.label != run.label):
        return run.label
    if parent is not None:
        return parent.variant or base_name(parent)
    if run.untrained:
        return "untrained"
    if run.sparsity is None:
        return run.path.name
    pattern = "sparse" if run.sparsity.pattern == "unstructured" else run.sparsity.pattern
    return f"{run.sparsity.level * 100:g}% {pattern}" if run.sparsity.level else "dense"
