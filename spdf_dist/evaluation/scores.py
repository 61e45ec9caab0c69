"""The metrics of each task, equal to its official script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.config.suggest import nearest
from spdf_dist.evaluation.java import JavaError, Meteor, ptb_tokenize
from spdf_dist.evaluation.mteval import e2e_bleu, e2e_nist, webnlg_bleu
from spdf_dist.evaluation.ter import mean_ter
from spdf_dist.evaluation.texts import read_e2e, read_parallel
from spdf_dist.evaluation.words import split_words


class Outputs:
    """Texts to score, with the tokens that several metrics share."""

    def __init__(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        self.hypotheses = hypotheses
        self.references = references

    @cached_property
    def caption_tokens(self) -> tuple[list[str], list[list[str]]]:
        """Lower-case words without punctuation, for the metrics that come from image captioning."""
        flat = [*self.hypotheses, *(text for texts in self.references for text in texts)]
        tokens = iter(ptb_tokenize(flat))
        hypotheses = [next(tokens) for _ in self.hypotheses]
        return hypotheses, [[next(tokens) for _ in texts] for texts in self.references]

    @cached_property
    def word_tokens(self) -> tuple[list[list[str]], list[list[list[str]]]]:
        """nltk's words, for METEOR and TER of WebNLG and DART."""
        words = cache(split_words)
        return [words(text) for text in self.hypotheses], [[words(text) for text in texts] for texts in self.references]

    def as_captions(self) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """References and hypotheses as pycocoevalcap's scorers take them."""
        hypotheses, references = self.caption_tokens
        return dict(enumerate(references)), {number: [text] for number, text in enumerate(hypotheses)}


def e2e_meteor(outputs: Outputs) -> float:
    hypotheses, references = outputs.caption_tokens
    with Meteor() as meteor:
        return meteor.corpus_score(hypotheses, references)


def e2e_rouge_l(outputs: Outputs) -> float:
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().compute_score(*outputs.as_captions())[0])


def e2e_cider(outputs: Outputs) -> float:
    from pycocoevalcap.cider.cider import Cider

    return float(Cider().compute_score(*outputs.as_captions())[0])


def webnlg_meteor(outputs: Outputs) -> float:
    hypotheses, references = outputs.word_tokens
    with Meteor() as meteor:
        return meteor.corpus_score(
            [" ".join(words) for words in hypotheses], [[" ".join(words) for words in texts] for texts in references]
        )


def webnlg_chrf(outputs: Outputs) -> float:
    """chrF++ in [0, 1]. Inputs without a reference are left out, and so are empty references."""
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
    """A metric of a task."""

    compute: Callable[[Outputs], float]
    digits: int
    """Decimals in the table."""


E2E_METRICS = {
    "bleu": Metric(lambda outputs: e2e_bleu(outputs.hypotheses, outputs.references), 4),
    "nist": Metric(lambda outputs: e2e_nist(outputs.hypotheses, outputs.references), 4),
    "meteor": Metric(e2e_meteor, 4),
    "rouge_l": Metric(e2e_rouge_l, 4),
    "cider": Metric(e2e_cider, 4),
}
WEBNLG_METRICS = {
    "bleu": Metric(lambda outputs: webnlg_bleu(outputs.hypotheses, outputs.references), 2),
    "meteor": Metric(webnlg_meteor, 6),
    "chrf": Metric(webnlg_chrf, 6),
    "ter": Metric(lambda outputs: mean_ter(*outputs.word_tokens), 6),
}
METRICS = {"e2e": E2E_METRICS, "webnlg": WEBNLG_METRICS, "dart": WEBNLG_METRICS}


def read_outputs(task: str, hypotheses: Path, references: Sequence[Path]) -> Outputs:
    """The texts of a task's files.

    Raises:
        UserError: unknown task, wrong number of reference files, or files that cannot be read or do not match.
    """
    if task not in METRICS:
        raise UserError(f"no metrics for the task '{task}'{nearest(task, METRICS)}")
    if task == "e2e":
        if len(references) != 1:
            raise UserError(f"e2e takes one file of references, got {len(references)}: a blank line divides the inputs")
        return Outputs(*read_e2e(hypotheses, references[0]))
    return Outputs(*read_parallel(hypotheses, references))


def score(
    task: str,
    outputs: Outputs,
    progress: Callable[[str], object] = lambda metric: None,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """All metrics of a task.

    Args:
        task: ``e2e``, ``webnlg`` or ``dart``.
        outputs: the texts.
        progress: told the name of each metric before it is computed.

    Returns:
        the score of each metric, None where it could not be computed, and the reason of each of those.
    """
    scores: dict[str, float | None] = {}
    failures: dict[str, str] = {}
    for name, metric in METRICS[task].items():
        progress(name)
        try:
            value = metric.compute(outputs)
            if not math.isfinite(value):
                raise ArithmeticError(f"the result is {value}")
            scores[name] = value
        except (JavaError, ImportError, OSError, ArithmeticError, ValueError) as error:
            scores[name] = None
            failures[name] = str(error)
    return scores, failures
