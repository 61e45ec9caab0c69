"""What a fine-tuning task is made of: examples and tasks, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """One input with one of its target texts."""

    context: str
    """The input as the model reads it."""
    target: str
    """The text to learn; empty where the file has no references."""
    group: int
    """Number of the distinct input, from 0 in file order; examples of one group differ in their target alone."""


@dataclass(frozen=True)
class Task:
    """A task: how its files are read and how its outputs are written."""

    name: str
    splits: tuple[str, ...]
    """Names that ``load`` takes."""
    load: Callable[[Path, str], list[Example]]
    """Reads a file (or folder) as one of the splits."""
    finish: Callable[[str], str]
    """Applied to hypotheses and references before they are written, as LoRA's decoding does."""
    reference_files: int
    """0: one file, the references of an input on consecutive lines, a blank line after each input.
    N: N files of one line an input, the first reference filling up."""


def as_written(text: str) -> str:
    """The text itself, on one line: what E2E and Curation write."""
    return " ".join(text.split("\n"))


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
