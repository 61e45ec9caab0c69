"""The metrics of the built-in tasks. Each value equals that of its official script, on the same scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from spdf_dist.base.extras import require_extra
from spdf_dist.scoring.java import JavaError, Meteor, ptb_tokenize
from spdf_dist.scoring.mteval import e2e_bleu, e2e_nist, webnlg_bleu
from spdf_dist.scoring.ter import mean_ter
from spdf_dist.scoring.words import split_words


class Outputs:
    """Texts to score, with cached tokens that several metrics use."""

    def __init__(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        self.hypotheses = hypotheses
        self.references = references

    @cached_property
    def caption_tokens(self) -> tuple[list[str], list[list[str]]]:
        """Lower-case words without punctuation, for the metrics from image captioning."""
        flat = [*self.hypotheses, *(text for texts in self.references for text in texts)]
        tokens = iter(ptb_tokenize(flat))
        hypotheses = [next(tokens) for _ in self.hypotheses]
        return hypotheses, [[next(tokens) for _ in texts] for texts in self.references]

    @cached_property
    def word_tokens(self) -> tuple[list[list[str]], list[list[list[str]]]]:
        """Words as nltk splits them, for METEOR and TER of WebNLG and DART."""
        words = cache(split_words)
        return [words(text) for text in self.hypotheses], [[words(text) for text in texts] for texts in self.references]

    def as_captions(self) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """References and hypotheses in the form of pycocoevalcap's scorers."""
        hypotheses, references = self.caption_tokens
        return dict(enumerate(references)), {number: [text] for number, text in enumerate(hypotheses)}


def e2e_meteor(outputs: Outputs) -> float:
    hypotheses, references = outputs.caption_tokens
    with Meteor() as meteor:
        return meteor.corpus_score(hypotheses, references)


def e2e_rouge_l(outputs: Outputs) -> float:
    require_extra("scores", "ROUGE-L")
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().compute_score(*outputs.as_captions())[0])


def e2e_cider(outputs: Outputs) -> float:
    require_extra("scores", "CIDEr")
    from pycocoevalcap.cider.cider import Cider

    return float(Cider().compute_score(*outputs.as_captions())[0])


def webnlg_meteor(outputs: Outputs) -> float:
    hypotheses, references = outputs.word_tokens
    with Meteor() as meteor:
        return meteor.corpus_score(
            [" ".join(words) for words in hypotheses], [[" ".join(words) for words in texts] for texts in references]
        )


def webnlg_chrf(outputs: Outputs) -> float:
    """chrF++ in [0, 1]. Empty references are ignored, and so are inputs that have no other reference.

    Raises ValueError when every reference is empty.
    """
    require_extra("scores", "chrF++")
    from sacrebleu.metrics.chrf import CHRF

    pairs = [
        (hypothesis, [text for text in texts if text.strip()])
        for hypothesis, texts in zip(outputs.hypotheses, outputs.references, strict=True)
    ]
    pairs = [(hypothesis, texts) for hypothesis, texts in pairs if texts]
    if not pairs:
        raise ValueError("every reference is empty")
    most = max(len(texts) for _, texts in pairs)
    streams = [[texts[at] if at < len(texts) else None for _, texts in pairs] for at in range(most)]
    scorer = CHRF(word_order=2, eps_smoothing=True)
    return float(scorer.corpus_score([hypothesis for hypothesis, _ in pairs], streams).score) / 100


@dataclass(frozen=True)
class Metric:
    """A measure of the quality of generated texts."""

    name: str
    """Key of the metric in ``spdf evaluate --json``."""
    title: str
    """Name of the metric in tables."""
    compute: Callable[[Outputs], float]
    digits: int = 4
    """Decimals in the table of ``spdf evaluate``."""
    lower_is_better: bool = False
    published_scale: float = 1.0
    """Factor between the value of the official script and published numbers."""


LOSSES = {
    "loss": "loss",
    "val_loss": "validation loss",
    "perplexity": "perplexity",
    "perplexity_per_word": "perplexity per word",
}
"""Measures of a model rather than of its texts, with their titles. Lower is better."""

E2E_METRICS = (
    Metric("bleu", "BLEU", lambda outputs: e2e_bleu(outputs.hypotheses, outputs.references), published_scale=100),
    Metric("nist", "NIST", lambda outputs: e2e_nist(outputs.hypotheses, outputs.references)),
    Metric("meteor", "METEOR", e2e_meteor, published_scale=100),
    Metric("rouge_l", "ROUGE-L", e2e_rouge_l, published_scale=100),
    Metric("cider", "CIDEr", e2e_cider),
)
WEBNLG_METRICS = (
    Metric("bleu", "BLEU", lambda outputs: webnlg_bleu(outputs.hypotheses, outputs.references), digits=2),
    Metric("meteor", "METEOR", webnlg_meteor, digits=6),
    Metric("chrf", "chrF++", webnlg_chrf, digits=6),
    Metric("ter", "TER", lambda outputs: mean_ter(*outputs.word_tokens), digits=6, lower_is_better=True),
)


def score(
    metrics: Sequence[Metric],
    outputs: Outputs,
    progress: Callable[[str], object] = lambda metric: None,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The value of each metric.

    Args:
        metrics: the metrics of a task.
        outputs: the texts to score.
        progress: called with the name of each metric before it is computed.

    Returns:
        the score of each metric (None where it could not be computed), and the reason for each missing score.
    """
    scores: dict[str, float | None] = {}
    failures: dict[str, str] = {}
    for metric in metrics:
        progress(metric.name)
        try:
            value = metric.compute(outputs)
            if not math.isfinite(value):
                raise ArithmeticError(f"the result is {value}")
            scores[metric.name] = value
        except (JavaError, ImportError, OSError, ArithmeticError, ValueError) as error:
            scores[metric.name] = None
            failures[metric.name] = str(error)
    return scores, failures
