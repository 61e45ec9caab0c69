"""Tables 2 and 3 of the paper and Figure 2 of the blog, computed from the formula, beside the printed numbers.

A number is reproduced when it has the printed digits. Every other number has a note with the rounding or the mistake
that leads to the printed digits. Source: SPDF appendix A.4, blog of November 28, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

from spdf_dist.accounting.flops import forward_flops, training_flops
from spdf_dist.config.schema import ModelConfig, SparsityConfig

MODELS = {
    "GPT-2 Small": ModelConfig(
        num_layers=12, hidden_size=768, num_attention_heads=12, seq_length=2048, vocab_size=50257
    ),
    "GPT-3 XL": ModelConfig(num_layers=24, hidden_size=2048, num_attention_heads=16, seq_length=2048, vocab_size=50257),
}
TRAIN_TOKENS = {"GPT-2 Small": 2.5e9, "GPT-3 XL": 26e9}
LEVELS = (0.0, 0.5, 0.75)
FINETUNE_LENGTH = 512

TABLE_2 = {
    ("GPT-2 Small", 0.0): ("1.22e6", "1.99e12", "2.43e18", "2.43", "1x"),
    ("GPT-2 Small", 0.5): ("1.22e6", "1.47e12", "1.79e18", "1.79", "0.737x"),
    ("GPT-2 Small", 0.75): ("1.22e6", "1.20e12", "1.46e18", "1.46", "0.601x"),
    ("GPT-3 XL", 0.0): ("1.27e7", "1.86e13", "2.36e20", "236.10", "1x"),
    ("GPT-3 XL", 0.5): ("1.27e7", "1.12e13", "1.42e20", "141.87", "0.601x"),
    ("GPT-3 XL", 0.75): ("1.27e7", "7.46e12", "9.48e19", "94.76", "0.401x"),
}
TABLE_2_COLUMNS = ("sequences", "FLOPs/seq", "total FLOPs", "exaFLOPs", "of dense")

TABLE_3 = {
    ("E2E", "GPT-2 Small"): ("1.26e5", "1.36e11", "5.15e16", "0.052"),
    ("E2E", "GPT-3 XL"): ("1.26e5", "1.39e12", "5.27e17", "0.524"),
    ("WebNLG", "GPT-2 Small"): ("0.54e5", "1.36e11", "2.21e16", "0.022"),
    ("WebNLG", "GPT-3 XL"): ("0.54e5", "1.39e12", "2.26e17", "0.226"),
    ("DART", "GPT-2 Small"): ("1.25e5", "1.36e11", "5.12e16", "0.051"),
    ("DART", "GPT-3 XL"): ("1.25e5", "1.39e12", "5.24e17", "0.524"),
    ("Curation Corpus", "GPT-2 Small"): ("0.34e5", "1.36e11", "1.38e16", "0.014"),
    ("Curation Corpus", "GPT-3 XL"): ("0.34e5", "1.39e12", "1.41e17", "0.141"),
}
TABLE_3_COLUMNS = ("sequences", "FLOPs/seq", "total FLOPs", "exaFLOPs")

EXAMPLES = {"E2E": (42_061, 3), "WebNLG": (18_025, 3), "DART": (62_659, 2), "Curation Corpus": (33_700, 1)}
"""Training examples, and epochs that follow from the printed 'Total Seq'. Curation Corpus gives only its total."""

ROUNDED = {
    ("GPT-2 Small", 0.75): {
        "total FLOPs": (1.20e12 * 1.22e6, "rounded factors, 1.20e12 x 1.22e6"),
        "exaFLOPs": (1.20e12 * 1.22e6 / 1e18, "rounded factors, 1.20e12 x 1.22e6"),
        "of dense": (1.46 / 2.43, "rounded factors, 1.46 / 2.43"),
    },
    ("GPT-3 XL", 0.0): {
        "exaFLOPs": (1.8597e13 * 24_796 * 512 / 1e18, "1.8597e13 x 24,796 whole steps of 512 sequences"),
    },
    ("E2E", "GPT-2 Small"): {"total FLOPs": (3 * 1.3627e11 * 1.26e5, "rounded factors, 3 x 1.3627e11 x 1.26e5")},
    ("E2E", "GPT-3 XL"): {
        "total FLOPs": (3 * 1.3942e12 * 1.26e5, "rounded factors, 3 x 1.3942e12 x 1.26e5"),
        "exaFLOPs": (3 * 1.3942e12 * 62_659 * 2 / 1e18, "DART's value, which contradicts the 5.27e17 beside it"),
    },
}
"""Numbers whose printed digits differ from the exact formula, by row and column: (paper's number, its derivation)."""


@dataclass(frozen=True)
class Figure:
    """A printed number and the computed one."""

    column: str
    printed: str
    ours: float
    shown: str
    """``ours`` in the format of ``printed``."""
    note: str
    """Why the digits differ; empty when they agree."""

    @property
    def reproduced(self) -> bool:
        """Whether ``ours`` has the printed digits."""
        return self.shown == self.printed


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    labels: tuple[str, ...]
    figures: tuple[Figure, ...]


def as_printed(value: float, printed: str) -> str:
    """``value`` with the number of decimals, the exponent and the unit of ``printed``."""
    unit = "x" if printed.endswith("x") else ""
    mantissa, _, exponent = printed.removesuffix("x").partition("e")
    decimals = len(mantissa.partition(".")[2])
    scaled = value / 10 ** int(exponent or 0)
    return f"{scaled:.{decimals}f}" + (f"e{exponent}" if exponent else "") + unit


def make_row(
    labels: tuple[str, ...],
    key: tuple[str, str | float],
    columns: tuple[str, ...],
    printed: tuple[str, ...],
    ours: tuple[float, ...],
) -> Row:
    """A row, with a note on each number whose digits differ from the printed ones."""
    made = []
    for column, text, value in zip(columns, printed, ours, strict=True):
        shown = as_printed(value, text)
        note = ""
        if shown != text:
            theirs, words = ROUNDED[key][column]
            note = f"{words}: {as_printed(theirs, text)}"
        made.append(Figure(column, text, value, shown, note))
    return Row(labels, tuple(made))


def pretraining_flops(name: str, level: float) -> float:
    """Total pre-training FLOPs of one of the paper's models at a sparsity level."""
    model = MODELS[name]
    return training_flops(model, SparsityConfig(level=level)) * TRAIN_TOKENS[name] / model.seq_length


def finetuning_flops(task: str, name: str) -> float:
    """Total FLOPs of dense fine-tuning as in the paper: 'Total Seq' sequences, padded to 512 tokens."""
    examples, epochs = EXAMPLES[task]
    return float(training_flops(MODELS[name], None, FINETUNE_LENGTH) * examples * epochs)


def table_2() -> list[Row]:
    """Pre-training FLOPs (paper, Table 2)."""
    rows = []
    for (name, level), printed in TABLE_2.items():
        model = MODELS[name]
        total = pretraining_flops(name, level)
        per_seq = training_flops(model, SparsityConfig(level=level))
        ours = (
            TRAIN_TOKENS[name] / model.seq_length,
            float(per_seq),
            total,
            total / 1e18,
            total / pretraining_flops(name, 0.0),
        )
        rows.append(make_row((name, f"{level:.0%}"), (name, level), TABLE_2_COLUMNS, printed, ours))
    return rows


def table_3() -> list[Row]:
    """Fine-tuning FLOPs (paper, Table 3).

    The column 'FLOPs/seq' counts only the forward pass at 512 tokens, unlike its caption. The totals count three times
    as much.
    """
    rows = []
    for (task, name), printed in TABLE_3.items():
        examples, epochs = EXAMPLES[task]
        total = finetuning_flops(task, name)
        forward = sum(forward_flops(MODELS[name], None, FINETUNE_LENGTH).values())
        ours = (float(examples * epochs), float(forward), total, total / 1e18)
        rows.append(make_row((task, name), (task, name), TABLE_3_COLUMNS, printed, ours))
    return rows


TABLE_3_REMARKS = (
    "FLOPs/seq of Table 3 is the forward pass alone at 512 tokens; its totals are three times that.",
    "Sequences are 3 epochs of E2E (42,061) and WebNLG (18,025) and 2 of DART (62,659), not the 5 of appendix A.2; "
    "for Curation Corpus about 33.7k sequences are inferred from the totals.",
)


def figure_2() -> list[dict[str, float]]:
    """Figure 2 of the blog: FLOPs of pre-training GPT-3 XL at each sparsity level, and of the fine-tuning after it."""
    model, task = "GPT-3 XL", "Curation Corpus"
    tuning = finetuning_flops(task, model)
    dense = pretraining_flops(model, 0.0) + tuning
    return [
        {
            "sparsity": level,
            "pretraining": pretraining_flops(model, level),
            "finetuning": tuning,
            "reduction": 1 - (pretraining_flops(model, level) + tuning) / dense,
        }
        for level in LEVELS
    ]


FIGURE_2_REMARK = (
    "The blog's text puts pre-training at about 25x fine-tuning; Tables 2 and 3 of the same work give 1,675x for "
    "GPT-3 XL on Curation Corpus, and so does the formula."
)
