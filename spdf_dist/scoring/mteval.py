"""BLEU and NIST with mteval-13a's tokenization, as the official scripts of E2E, WebNLG and DART compute them.

E2E's script uses its Python port of mteval (option ``-p``). WebNLG's script uses multi-bleu-detok. They differ in
details that affect short outputs. This module implements both.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

BLEU_ORDER = 4
NIST_ORDER = 5

NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2
"""Sets the length penalty to 0.5 for outputs of 2/3 of the references' mean length (Doddington, 2002)."""

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
    """E2E's tokens, in lower case. An empty text is one empty token, which the official script counts as a word."""
    return [token.lower() for token in re.sub(r"\s+", " ", separate(text)).strip().split(" ")]


def cased_tokens(text: str) -> list[str]:
    """WebNLG's tokens, cased, split only at ASCII white space, because the official script reads bytes."""
    return [token for token in re.split(r"[ \t\n\r\f\v]+", separate(text)) if token]


def ngrams(tokens: Tokens, size: int) -> Iterable[tuple[str, ...]]:
    """All n-grams of ``size`` tokens."""
    return zip(*(tokens[at:] for at in range(size)), strict=False)


def max_counts(references: Sequence[Tokens], size: int) -> Counter[tuple[str, ...]]:
    """The maximum count of each n-gram over the references."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= Counter(ngrams(reference, size))
    return most


def matches(hypothesis: Tokens, references: Sequence[Tokens], size: int) -> Counter[tuple[str, ...]]:
    """The n-gram counts of the hypothesis, clipped at the maximum count over the references."""
    return Counter(ngrams(hypothesis, size)) & max_counts(references, size)


def closest_length(hypothesis: Tokens, references: Sequence[Tokens]) -> int:
    """The reference length nearest to that of the hypothesis. The shorter length wins ties."""
    return min((len(reference) for reference in references), key=lambda size: (abs(size - len(hypothesis)), size))


def bleu_counts(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    tokens_of: Callable[[str], list[str]],
    least: int = -BLEU_ORDER,
) -> tuple[list[int], list[int], int]:
    """Matched and total n-grams of each order, and the length of the references.

    A hypothesis adds at least ``least`` to the total of an order.
    """
    hits, totals, length = [0] * BLEU_ORDER, [0] * BLEU_ORDER, 0
    for text, texts in zip(hypotheses, references, strict=True):
        hypothesis, answers = tokens_of(text), [tokens_of(reference) for reference in texts]
        for n in range(BLEU_ORDER):
            hits[n] += matches(hypothesis, answers, n + 1).total()
            totals[n] += max(least, len(hypothesis) - n)
        length += closest_length(hypothesis, answers)
    return hits, totals, length


def e2e_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 in [0, 1], case-insensitive, as E2E's script with ``-p`` prints it.

    A very small number replaces the count of an n-gram order without a match, or without any n-gram. A hypothesis of
    fewer than n - 1 words reduces the total number of n-grams.
    """
    hits, totals, length = bleu_counts(hypotheses, references, lower_tokens)
    log_precision = sum(
        math.log(max(hit, TINY_MATCHES) / max(total, TINY_LENGTH)) for hit, total in zip(hits, totals, strict=True)
    )
    return brevity_penalty(totals[0], length) * math.exp(log_precision / BLEU_ORDER)


def webnlg_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 in [0, 100], cased, as multi-bleu-detok prints it. It is 0 when an n-gram order has no match."""
    hits, totals, length = bleu_counts(hypotheses, references, cased_tokens, least=0)
    if not all(hits):
        return 0.0
    log_precision = sum(math.log(hit / total) for hit, total in zip(hits, totals, strict=True))
    return 100 * brevity_penalty(totals[0], length) * math.exp(log_precision / BLEU_ORDER)


def brevity_penalty(hypothesis_length: int, reference_length: int) -> float:
    """BLEU's factor in (0, 1] for the total lengths. It is below 1 where the hypotheses are shorter."""
    if hypothesis_length > reference_length:
        return 1.0
    return math.exp(1 - reference_length / max(hypothesis_length, 1e-5))


def e2e_nist(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """NIST-5 (Doddington, 2002), case-insensitive, as E2E's script with ``-p`` prints it.

    The information of an n-gram is log2 of the count of its first n - 1 words over the count of the n-gram, in all
    references. The length penalty uses the mean length of the references of each input.
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
        # The official script divides by zero where the outputs are too short for any n-gram of an order.
        if total > 0:
            score += sum(information(ngram) * count for ngram, count in hit.items()) / total
    ratio = totals[0] / mean_length
    if 0 < ratio < 1:
        score *= math.exp(-NIST_BETA * math.log(ratio) ** 2)
    return score if ratio > 0 else 0.0
