"""Translation edit rate as WebNLG's official script computes it (through pyter), fast.

pyter's definition differs from the TER tool's: at each round it takes, of all moves of a run of words that also stands
somewhere in the reference, the one that lowers the edit distance most, until none does; each move costs one edit. The
distance is computed here on bit vectors (Hyyrö, 2003), the words of the reference as bits, and a move's common
beginning with the present words is not computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def ter(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    """Edits and moves that turn ``hypothesis`` into ``reference``, over the reference's length.

    Raises:
        ZeroDivisionError: the reference is empty.
    """
    # Numbers in the words' own order: equally good moves are settled by comparing the moved words.
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
"""Vertical positive and negative differences as bit vectors, and the distance to the whole reference."""


class EditDistance:
    """Levenshtein distance to one reference, a hypothesis word at a time."""

    def __init__(self, target: Sequence[int]) -> None:
        self.all = (1 << len(target)) - 1
        self.last = 1 << (len(target) - 1) if target else 0
        self.start: State = (self.all, 0, len(target))
        self.places: dict[int, int] = {}
        for at, word in enumerate(target):
            self.places[word] = self.places.get(word, 0) | 1 << at

    def prefixes(self, words: Sequence[int]) -> list[State]:
        """The states after 0, 1, ... all words."""
        states = [self.start]
        for word in words:
            states.append(self.advance(states[-1], (word,)))
        return states

    def advance(self, state: State, words: Sequence[int]) -> State:
        """The state after further words."""
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
    """``words`` after the move that lowers the distance most, or None where none does.

    A move takes a run that stands at ``source`` in the words and at ``goal`` in the reference to index ``goal`` of the
    remaining words. Of moves that are equally good, the words that compare greatest win.
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
    """A number of edits that no moves can go below: words that have no partner."""
    common = (Counter(hypothesis) & Counter(reference)).total()
    return max(len(hypothesis), len(reference)) - common


def segment_ter(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The lowest rate over the references; an empty reference counts 1, as in the official script."""
    lowest = 1.0 if any(not reference for reference in references) else float("inf")
    # References that cannot be better than the lowest so far are passed over, the most alike come first.
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
    """The mean over segments of :func:`segment_ter`; lower is better."""
    scores = [segment_ter(hypothesis, answers) for hypothesis, answers in zip(hypotheses, references, strict=True)]
    return sum(scores) / len(scores)
