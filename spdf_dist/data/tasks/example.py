"""Examples of a fine-tuning task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """An input with one of its target texts."""

    context: str
    """The input text for the model."""
    target: str
    """The text to learn; empty where the file has no reference."""
    group: int
    """Number of the distinct input, from 0 in file order. Examples of one group differ only in their targets."""


def number_groups(pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """Examples of (context, target) pairs. Equal contexts share a group. Groups are numbered by first appearance."""
    groups: dict[str, int] = {}
    return [Example(context, target, groups.setdefault(context, len(groups))) for context, target in pairs]


def distinct_contexts(examples: Sequence[Example]) -> list[str]:
    """The context of each group, in group order. Generation makes one text per context."""
    contexts = {example.group: example.context for example in reversed(examples)}
    return [contexts[group] for group in sorted(contexts)]


def references(examples: Sequence[Example]) -> list[list[str]]:
    """The targets of each group, in group order, and in file order inside a group."""
    targets: dict[int, list[str]] = {}
    for example in examples:
        targets.setdefault(example.group, []).append(example.target)
    return [targets[group] for group in sorted(targets)]
