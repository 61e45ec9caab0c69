"""What the paper and the blog print, as printed. Source: SPDF appendix, Tables 1 and 4 to 6; blog of November 28, 2022.

Tables 2 and 3 are in ``spdf_dist.accounting.paper``, which regenerates them.
"""

from __future__ import annotations

from spdf_dist.accounting.paper import MODELS
from spdf_dist.config.schema import LOGICAL_WEIGHTS, ModelConfig, PretrainConfig
from spdf_dist.report.runs import short_count

Value = tuple[str, str]
"""Mean and deviation as printed; an empty deviation was not printed."""

TABLE_1_COLUMNS = ("parameters", "layers", "d_model", "heads", "d_head", "batch", "learning rate", "tokens")
TABLE_1 = {
    "GPT-2 Small": ("125M", "12", "768", "12", "64", "256", "6e-4", "2.5B"),
    "GPT-3 XL": ("1.3B", "24", "2048", "16", "128", "512", "2e-4", "26B"),
}
CONFIG_NAMES = {"GPT-2 Small": "gpt2_small", "GPT-3 XL": "gpt3_xl"}

TABLES_4_TO_6: dict[str, dict[tuple[str, float], dict[str, Value]]] = {
    "e2e": {
        ("GPT-2 Small", 0.0): {
            "bleu": ("67.49", "0.60"),
            "nist": ("8.59", "0.03"),
            "meteor": ("46.08", "0.22"),
            "rouge_l": ("70.22", "0.42"),
            "cider": ("2.38", "0.03"),
        },
        ("GPT-2 Small", 0.5): {
            "bleu": ("67.39", "0.38"),
            "nist": ("8.62", "0.03"),
            "meteor": ("45.89", "0.18"),
            "rouge_l": ("70.10", "0.26"),
            "cider": ("2.38", "0.01"),
        },
        ("GPT-2 Small", 0.75): {
            "bleu": ("66.50", "0.01"),
            "nist": ("8.46", "0.13"),
            "meteor": ("45.61", "0.32"),
            "rouge_l": ("70.02", "0.26"),
            "cider": ("2.36", "0.02"),
        },
        ("GPT-3 XL", 0.0): {
            "bleu": ("68.10", "0.46"),
            "nist": ("8.64", "0.06"),
            "meteor": ("46.40", "0.01"),
            "rouge_l": ("71.03", "0.22"),
            "cider": ("2.41", "0.02"),
        },
        ("GPT-3 XL", 0.5): {
            "bleu": ("67.98", "0.63"),
            "nist": ("8.62", "0.07"),
            "meteor": ("46.40", "0.07"),
            "rouge_l": ("71.30", "0.20"),
            "cider": ("2.43", "0.02"),
        },
        ("GPT-3 XL", 0.75): {
            "bleu": ("67.66", "0.59"),
            "nist": ("8.59", "0.09"),
            "meteor": ("46.07", "0.26"),
            "rouge_l": ("70.40", "0.26"),
            "cider": ("2.42", "0.03"),
        },
    },
    "webnlg": {
        ("GPT-2 Small", 0.0): {"bleu": ("63.42", "0.26"), "meteor": ("0.44", ""), "ter": ("0.34", "")},
        ("GPT-2 Small", 0.5): {"bleu": ("63.10", "0.13"), "meteor": ("0.44", ""), "ter": ("0.34", "")},
        ("GPT-2 Small", 0.75): {"bleu": ("62.64", "0.22"), "meteor": ("0.43", ""), "ter": ("0.34", "")},
        ("GPT-3 XL", 0.0): {"bleu": ("63.62", "0.23"), "meteor": ("0.45", ""), "ter": ("0.32", "")},
        ("GPT-3 XL", 0.5): {"bleu": ("63.47", "0.21"), "meteor": ("0.45", ""), "ter": ("0.33", "")},
        ("GPT-3 XL", 0.75): {"bleu": ("63.06", "0.11"), "meteor": ("0.45", ""), "ter": ("0.33", "")},
    },
    "dart": {
        ("GPT-2 Small", 0.0): {"bleu": ("46.30", "0.16"), "meteor": ("0.38", ""), "ter": ("0.51", "")},
        ("GPT-2 Small", 0.5): {"bleu": ("45.74", "0.10"), "meteor": ("0.37", ""), "ter": ("0.51", "")},
        ("GPT-2 Small", 0.75): {"bleu": ("44.97", "0.11"), "meteor": ("0.37", ""), "ter": ("0.52", "")},
        ("GPT-3 XL", 0.0): {"bleu": ("47.71", "0.11"), "meteor": ("0.39", ""), "ter": ("0.49", "")},
        ("GPT-3 XL", 0.5): {"bleu": ("47.10", "0.13"), "meteor": ("0.39", ""), "ter": ("0.49", "")},
        ("GPT-3 XL", 0.75): {"bleu": ("46.96", "0.08"), "meteor": ("0.38", ""), "ter": ("0.50", "")},
    },
}
TABLE_NUMBERS = {"e2e": 4, "webnlg": 5, "dart": 6}

CURATION_DELTAS = {("GPT-2 Small", 0.75): 3.76, ("GPT-3 XL", 0.5): 0.83, ("GPT-3 XL", 0.75): 2.75}
"""Perplexity above the dense baseline on Curation Corpus: all that the blog's text gives of its Figure 4, right."""


def paper_cell(config: PretrainConfig) -> str:
    """The paper's name of a model that is pre-trained as the paper does; '' for any other, controls among them.

    Ours, and not the paper's, are other patterns, masks over some of the matrices, other scales of the initial weights
    and other numbers of tokens: no pre-training, or dense stopped early.
    """
    sparsity, name = config.sparsity, paper_model(config.model)
    plain = sparsity.level == 0 or (
        sparsity.pattern == "unstructured"
        and sorted(sparsity.targets) == sorted(LOGICAL_WEIGHTS)
        and sparsity.init_scale == "none"
    )
    return name if name and plain and short_count(config.training.train_tokens) == TABLE_1[name][-1] else ""


def paper_model(model: ModelConfig) -> str:
    """The paper's name of an architecture; '' for any other."""
    for name, theirs in MODELS.items():
        shape = (model.num_layers, model.hidden_size, model.num_attention_heads, model.ffn, model.vocab_size)
        if shape == (
            theirs.num_layers,
            theirs.hidden_size,
            theirs.num_attention_heads,
            theirs.ffn,
            theirs.vocab_size,
        ):
            return name
    return ""
