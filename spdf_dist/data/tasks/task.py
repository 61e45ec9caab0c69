"""The protocol of a fine-tuning task. The built-in ones are examples; docs/tasks.md shows how to add another."""

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

PUBLISHED = Path(__file__).parent / "published"
"""Results that the SPDF paper (appendix, Tables 4 to 6) and its blog post print, as printed."""


def as_written(text: str) -> str:
    """The text itself, on one line: what E2E and Curation write."""
    return " ".join(text.split("\n"))


def never(examples: Sequence[Example]) -> bool:
    """False: no generator of this project writes such examples."""
    return False


@dataclass(frozen=True)
class Task:
    """A task: how its files are read, how a model sees its examples, and how its outputs are scored.

    ``name``, ``splits`` and ``load`` are required; the other fields have the defaults of a plain task.
    """

    name: str
    splits: tuple[str, ...]
    """Names that ``load`` takes."""
    load: Callable[[Path, str], list[Example]]
    """Reads a file (or folder) as one of the splits."""
    title: str = ""
    """Its name in tables and figures; empty: ``name``."""
    finish: Callable[[str], str] = as_written
    """Applied to hypotheses and references before they are written."""
    reference_files: int = 0
    """0: one file, the references of an input on consecutive lines, a blank line after each input.
    N: N files of one line per input; an input with fewer references repeats its first."""
    encode_prompt: Callable[[str, Tokenizer], list[int]] = encoding.encode_prompt
    """The token ids from which generation starts, of a context."""
    encode: Callable[[Sequence[Example], Tokenizer, int], list[EncodedExample]] = encoding.encode_examples
    """The token ids of examples, each at most so many tokens long. Each must begin with its prompt's ids."""
    metrics: tuple[Metric, ...] = ()
    """What ``spdf evaluate`` computes; empty: the task is measured by ``spdf perplexity --task``."""
    is_synthetic: Callable[[Sequence[Example]], bool] = never
    """Whether the examples come from this project's generator."""
    published: Path | None = None
    """A CSV of printed results: model, sparsity, metric, mean, deviation."""
    published_split: str = "test"
    """The split that the printed results are of."""

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)

    def metric(self, name: str) -> Metric | None:
        """The metric called ``name``."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def split_title(self, split: str) -> str:
        """A split in tables: empty for the whole of a test set without parts, "all" for that of one with parts."""
        parts = [name for name in self.splits if name.startswith("test_")]
        return {"test": "all" if parts else ""}.get(split, split.removeprefix("test_"))
