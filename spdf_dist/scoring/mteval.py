"""BLEU and NIST with mteval-13a's tokenization, as the official scripts of E2E, WebNLG and DART compute them.

E2E's script counts through its Python port of mteval (its option ``-p``), WebNLG's through multi-bleu-detok. They agree
but for details that show on short outputs, and both are followed here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

BLEU_ORDER = 4
NIST_ORDER = 5

NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2
"""Makes the length penalty 0.5 where outputs have 2/3 of the references' mean length (Doddington, 2002)."""

TINY_MATCHES = 1e-15
TINY_LENGTH = 1e-9

ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
PUNCTUATION = re.compile(r"([{-~\[-` -&(-+:-@/])")
STOP_AFTER_OTHER = re.compile(r"([^0-9])([.,])")
STOP_BEFORE_OTHER = re.compile(r"([.,])([^0-9])")
DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")

Tokens = Sequence[str]


def separate(text: str) -> str:
    """``text`` with spaces around punctuation, as mteval-13a does for Western languages."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ENTITIES:
        text = text.replace(entity, character)
    text = PUNCTUATION.sub(r" \1 ", f" {text} ")
    text = STOP_AFTER_OTHER.sub(r"\1 \2 ", text)
    text = STOP_BEFORE_OTHER.sub(r" \1 \2", text)
    return DASH_AFTER_DIGIT.sub(r"\1 \2 ", text)


def lower_tokens(text: str) -> list[str]:
    """E2E's tokens: lower case; an empty text is one empty token, which its script counts as a word."""
    return [token.lower() for token in re.sub(r"\s+", " ", separate(text)).strip().split(" ")]


def cased_tokens(text: str) -> list[str]:
    """WebNLG's tokens: cased, cut at ASCII spaces only (its script reads bytes)."""
    return [token for token in re.split(r"[ \t\n\r\f\v]+", separate(text)) if token]


def ngrams(tokens: Tokens, size: int) -> Iterable[tuple[str, ...]]:
    """All runs of ``size`` tokens."""
    return zip(*(tokens[at:] for at in range(size)), strict=False)


def most_of_each(references: Sequence[Tokens], size: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs in the reference that has it most often."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= Counter(ngrams(reference, size))
    return most


def matches(hypothesis: Tokens, references: Sequence[Tokens], size: int) -> Counter[tuple[str, ...]]:
    """The hypothesis's n-grams, each counted at most as often as in a reference."""
    return Counter(ngrams(hypothesis, size)) & most_of_each(references, size)


def closest_length(hypothesis: Tokens, references: Sequence[Tokens]) -> int:
    """The reference length nearest to the hypothesis's, the shorter one of two."""
    return min((len(reference) for reference in references), key=lambda size: (abs(size - len(hypothesis)), size))


def e2e_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 in [0, 1], case-insensitive, as E2E's script with ``-p`` prints it.

    An n-gram order without a match or without an n-gram counts as (almost) zero, and a hypothesis of fewer than n
    words takes its missing n-grams off the total.
    """
    hits = [0] * BLEU_ORDER
    totals = [0] * BLEU_ORDER
    length = 0
    for text, texts in zip(hypotheses, references, strict=True):
        hypothesis, answers = lower_tokens(text), [lower_tokens(reference) for reference in texts]
        for n in range(BLEU_ORDER):
            hits[n] += matches(hypothesis, answers, n + 1).total()
            totals[n] += len(hypothesis) - n
        length += closest_length(hypothesis, answers)
    log_precision = sum(
        math.log(max(hit, TINY_MATCHES) / max(total, TINY_LENGTH)) for hit, total in zip(hits, totals, strict=True)
    )
    return brevity_penalty(totals[0], length) * math.exp(log_precision / BLEU_ORDER)


def webnlg_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 in [0, 100], cased, as multi-bleu-detok prints it: 0 when an n-gram order has no match."""
    hits = [0] * BLEU_ORDER
    totals = [0] * BLEU_ORDER
    length = 0
    for text, texts in zip(hypotheses, references, strict=True):
        hypothesis, answers = cased_tokens(text), [cased_tokens(reference) for reference in texts]
        for n in range(BLEU_ORDER):
            hits[n] += matches(hypothesis, answers, n + 1).total()
            totals[n] += max(0, len(hypothesis) - n)
        length += closest_length(hypothesis, answers)
    if not all(hits):
        return 0.0
    log_precision = sum(math.log(hit / total) for hit, total in zip(hits, totals, strict=True))
    return 100 * brevity_penalty(totals[0], length) * math.exp(log_precision / BLEU_ORDER)


def brevity_penalty(hypothesis_length: int, reference_length: int) -> float:
    """1, or less where the hypotheses are shorter than the references."""
    if hypothesis_length > reference_length:
        return 1.0
    return math.exp(1 - reference_length / max(hypothesis_length, 1e-5))


def e2e_nist(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """NIST-5 (Doddington, 2002), case-insensitive, as E2E's script with ``-p`` prints it.

    An n-gram is worth log2 of how much rarer it is, over all references, than its beginning. The length penalty
    compares with the mean length of each input's references.
    """
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(NIST_ORDER + 1)]
    hits: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(NIST_ORDER)]
    totals = [0] * NIST_ORDER
    mean_length = 0.0
    for text, texts in zip(hypotheses, references, strict=True):
        hypothesis, answers = lower_tokens(text), [lower_tokens(reference) for reference in texts]
        for n in range(NIST_ORDER):
            hits[n] += matches(hypothesis, answers, n + 1)
            totals[n] += len(hypothesis) - n
            for answer in answers:
                counts[n + 1].update(ngrams(answer, n + 1))
        words = sum(map(len, answers))
        counts[0][()] += words
        mean_length += words / len(answers)

    def information(ngram: tuple[str, ...]) -> float:
        return math.log2(counts[len(ngram) - 1][ngram[:-1]] / counts[len(ngram)][ngram])

    score = 0.0
    for hit, total in zip(hits, totals, strict=True):
        # Where outputs are so short that an order has no n-grams at all, the official script divides by zero.
        if total > 0:
            score += sum(information(ngram) * count for ngram, count in hit.items()) / total
    ratio = totals[0] / mean_length
    if 0 < ratio < 1:
        score *= math.exp(-NIST_BETA * math.log(ratio) ** 2)
    return score if ratio > 0 else 0.0
