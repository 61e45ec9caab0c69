"""Examples of a fine-tuning task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One input with one of its target texts."""

    context: str
    """The input as the model reads it."""
    target: str
    """The text to learn; empty where the file has no references."""
    group: int
    """Number of the distinct input, from 0 in file order; examples of one group differ in their target alone."""


def number_groups(pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """Examples of (context, target) pairs; equal contexts share a group, numbered by first appearance."""
    groups: dict[str, int] = {}
    return [Example(context, target, groups.setdefault(context, len(groups))) for context, target in pairs]


def distinct_contexts(examples: Sequence[Example]) -> list[str]:
    """The context of each group, in group order: one generated text answers each."""
    contexts = {example.group: example.context for example in reversed(examples)}
    return [contexts[group] for group in sorted(contexts)]


def references(examples: Sequence[Example]) -> list[list[str]]:
    """The targets of each group, in group and file order."""
    targets: dict[int, list[str]] = {}
    for example in examples:
        targets.setdefault(example.group, []).append(example.target)
    return [targets[group] for group in sorted(targets)]
