"""The definition of a fine-tuning task. docs/tasks.md shows how to add one; the built-in tasks are examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spdf_dist.data.tasks import encoding
from spdf_dist.data.tasks.encoding import EncodedExample
from spdf_dist.data.tasks.example import Example
from spdf_dist.scoring.metrics import Metric

if TYPE_CHECKING:
    from spdf_dist.data.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")
"""The splits of most tasks."""
PUBLISHED = Path(__file__).parent / "published"
"""Folder of results as printed in the SPDF paper (appendix, Tables 4 to 6) and its blog post."""


def as_written(text: str) -> str:
    """``text`` on one line, otherwise unchanged, as E2E and Curation Corpus need it."""
    return " ".join(text.split("\n"))


def never(examples: Sequence[Example]) -> bool:
    """Always False: no generator of this project writes examples of the task."""
    return False


@dataclass(frozen=True)
class Task:
    """A task: how its files are read, how its examples are encoded, and how its outputs are scored.

    ``name``, ``splits`` and ``load`` are required. The other fields have defaults for a simple task.
    """

    name: str
    splits: tuple[str, ...]
    """Names of splits that ``load`` accepts."""
    load: Callable[[Path, str], list[Example]]
    """Reads one of the splits from a file or folder."""
    title: str = ""
    """Name of the task in tables and figures; empty: ``name``."""
    finish: Callable[[str], str] = as_written
    """Applied to hypotheses and references before they are written."""
    reference_files: int = 0
    """0: one file, with the references of an input on consecutive lines and a blank line after each input.
    N: N files with one line per input. Where an input has fewer references, its first one is repeated."""
    encode_prompt: Callable[[str, Tokenizer], list[int]] = encoding.encode_prompt
    """Returns the token ids of a context, from which generation starts."""
    encode: Callable[[Sequence[Example], Tokenizer, int], list[EncodedExample]] = encoding.encode_examples
    """Returns the token ids of examples, each with at most the given length. They must begin with the prompt's ids."""
    metrics: tuple[Metric, ...] = ()
    """Metrics that ``spdf evaluate`` computes; empty: only ``spdf perplexity --task`` measures the task."""
    is_synthetic: Callable[[Sequence[Example]], bool] = never
    """Whether a generator of this project wrote the examples."""
    published: Path | None = None
    """A CSV of printed results, with the columns model, sparsity, metric, mean, deviation."""
    published_split: str = "test"
    """The split of the printed results."""

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)

    def metric(self, name: str) -> Metric | None:
        """The metric called ``name``."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def split_title(self, split: str) -> str:
        """Name of a split in tables: empty for a test set without parts, "all" for a whole test set with parts."""
        parts = [name for name in self.splits if name.startswith("test_")]
        return {"test": "all" if parts else ""}.get(split, split.removeprefix("test_"))
