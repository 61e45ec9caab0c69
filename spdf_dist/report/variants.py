"""Names of variants. Runs of the same name differ only in their seeds. The name contains every other difference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from spdf_dist.report.runs import Run, describe_sparsity

MAX_DIFFERENCES = 4
"""Maximum number of differing keys in a name."""


def difference_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each settings, the keys and values in which the settings differ, such as 'lr 0.001, tensor 2'.

    All texts are empty when the settings are equal.
    """
    keys = [key for key in dict.fromkeys(key for one in settings for key in one) if differs(settings, key)]
    last = [key.rpartition(".")[2] for key in keys]
    names = [short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)]
    shown = keys[:MAX_DIFFERENCES]
    more = f", {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
    return [
        ", ".join(f"{name} {value_text(one.get(key))}" for key, name in zip(shown, names, strict=False)) + more
        for one in settings
    ]


def differs(settings: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether the settings have different values of ``key``."""
    return len({repr(one.get(key)) for one in settings}) > 1


def value_text(value: Any) -> str:
    """A config value as part of a name. Of a path, it is the last part."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).rpartition("/")[2]


def name_variants(runs: Sequence[Run]) -> None:
    """Set ``variant`` of every run. Pre-training runs are named first, because fine-tuning runs inherit their names."""
    for finetuning in (False, True):
        groups: dict[Hashable, list[Run]] = {}
        for run in runs:
            if run.is_finetuning == finetuning:
                run.variant = base_name(run)
                groups.setdefault((run.size(), run.variant, run.task, run.keep_mask, run.rejected), []).append(run)
        for group in groups.values():
            for run, difference in zip(group, difference_names([run.settings for run in group]), strict=True):
                run.variant += f", {difference}" if difference else ""
            name_repetitions(group)


def base_name(run: Run) -> str:
    """The name without differences: that of the user or workflow, else that of the parent, else from the config."""
    parent = run.parent if run.is_finetuning else None
    if run.label and (parent is None or parent.label != run.label):
        return run.label
    if parent is not None:
        return parent.variant or base_name(parent)
    if run.untrained:
        return "untrained"
    return describe_sparsity(run.sparsity) if run.sparsity else run.path.name


def name_repetitions(group: Sequence[Run]) -> None:
    """Add the folder to the names of repeated runs: those of one variant with equal seeds, except the first."""
    seen: set[Hashable] = set()
    for run in group:
        key = (run.variant, repr(run.seeds))
        if key in seen:
            run.variant += f", again in {run.path.name}"
        seen.add(key)
