"""A fast translation edit rate (TER), equal to that of WebNLG's official script, which uses pyter.

pyter's definition differs from that of the TER tool. A move takes a run of words that also occurs in the reference to
another place. Each round makes the move that reduces the edit distance most, until no move reduces it. A move costs one
edit. The distance is computed on bit vectors with one bit per word of the reference (Hyyrö, 2003). The states of the
words before the first change of a move are reused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def ter(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    """The number of edits and moves that turn ``hypothesis`` into ``reference``, divided by the reference's length.

    Raises:
        ZeroDivisionError: the reference is empty.
    """
    # The numbers keep the order of the words, because ties between moves are broken by comparing the moved words.
    rank = {word: number for number, word in enumerate(sorted({*hypothesis, *reference}))}
    words = [rank[word] for word in hypothesis]
    target = [rank[word] for word in reference]
    distance = EditDistance(target)
    moves = 0
    present = distance.prefixes(words)
    while True:
        best = best_move(words, target, distance, present)
        if best is None:
            return (moves + present[-1][2]) / len(target)
        moves += 1
        words = best
        present = distance.prefixes(words)


State = tuple[int, int, int]
"""Positive and negative vertical differences as bit vectors, and the distance to the whole reference."""


class EditDistance:
    """Levenshtein distance to one reference. Each step adds one word of the hypothesis."""

    def __init__(self, target: Sequence[int]) -> None:
        self.all = (1 << len(target)) - 1
        self.last = 1 << (len(target) - 1) if target else 0
        self.start: State = (self.all, 0, len(target))
        self.places: dict[int, int] = {}
        for at, word in enumerate(target):
            self.places[word] = self.places.get(word, 0) | 1 << at

    def prefixes(self, words: Sequence[int]) -> list[State]:
        """The states after 0, 1, ... len(words) words."""
        states = [self.start]
        for word in words:
            states.append(self.advance(states[-1], (word,)))
        return states

    def advance(self, state: State, words: Sequence[int]) -> State:
        """The state after ``words`` are appended."""
        positive, negative, distance = state
        every, last, places = self.all, self.last, self.places.get
        for word in words:
            equal = places(word, 0)
            vertical = equal | negative
            horizontal = (((equal & positive) + positive) ^ positive) | equal
            up = negative | ~(horizontal | positive) & every
            down = positive & horizontal
            if up & last:
                distance += 1
            elif down & last:
                distance -= 1
            up = (up << 1) | 1
            down <<= 1
            positive = (down | ~(vertical | up)) & every
            negative = up & vertical & every
        return positive, negative, distance


def best_move(
    words: list[int], target: Sequence[int], distance: EditDistance, present: Sequence[State]
) -> list[int] | None:
    """``words`` after the move that reduces the distance most, or None where no move reduces it.

    A move takes a run of words at ``source`` that occurs at ``goal`` in the reference, and inserts it at index ``goal``
    of the remaining words. Among equally good moves, the greatest resulting list of words wins.
    """
    places: dict[int, list[int]] = {}
    for at, word in enumerate(target):
        places.setdefault(word, []).append(at)
    lowest = present[-1][2]
    best: list[int] | None = None
    for source, word in enumerate(words):
        for goal in places.get(word, ()):
            if source == goal:
                continue
            length = 1
            while (
                source + length < len(words)
                and goal + length < len(target)
                and words[source + length] == target[goal + length]
            ):
                length += 1
            moved = words[:source] + words[source + length :]
            moved[goal:goal] = words[source : source + length]
            kept = min(source, goal)
            score = distance.advance(present[kept], moved[kept:])[2]
            if score < lowest or (score == lowest and best is not None and moved > best):
                lowest, best = score, moved
    return best


def least_edits(hypothesis: Sequence[str], reference: Sequence[str]) -> int:
    """A lower bound of the number of edits: the words without a match, which no move can remove."""
    common = (Counter(hypothesis) & Counter(reference)).total()
    return max(len(hypothesis), len(reference)) - common


def segment_ter(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The lowest rate over the references. An empty reference has the rate 1, as in the official script."""
    lowest = 1.0 if any(not reference for reference in references) else float("inf")
    # References are tried by their lower bound, and skipped when it is not below the lowest rate so far.
    ranked = sorted(
        ((least_edits(hypothesis, reference) / len(reference), reference) for reference in references if reference),
        key=lambda pair: pair[0],
    )
    done: set[tuple[str, ...]] = set()
    for bound, reference in ranked:
        if bound >= lowest:
            break
        if tuple(reference) not in done:
            done.add(tuple(reference))
            lowest = min(lowest, ter(hypothesis, reference))
    return lowest


def mean_ter(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """The mean of :func:`segment_ter` over all segments. Lower is better."""
    scores = [segment_ter(hypothesis, answers) for hypothesis, answers in zip(hypotheses, references, strict=True)]
    return sum(scores) / len(scores)
