"""Encoding of examples, and the order and shape of fine-tuning batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from spdf_dist.data.tasks import Example
from spdf_dist.data.tasks.batches import FinetuneBatches, micro_batches
from spdf_dist.data.tasks.encoding import IGNORED, EncodedExample, collate, encode_examples, encode_prompt
from spdf_dist.data.tokenizer import Tokenizer, load_tokenizer


class Letters(Tokenizer):
    """One token per character."""

    vocab_size = 128
    eod_id = 0
    digest = ""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids)

    def save(self, folder: str | Path) -> None:
        raise NotImplementedError


def ids(text: str) -> list[int]:
    return [0 if letter == "#" else ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("length", "expected", "loss_start"),
    [
        (512, "context# target#", 8),
        (16, "context# target#", 8),
        (12, "con# target#", 4),
        (6, "# tar#"[:1] + " targ", 1),
    ],
)
def test_long_examples_lose_the_end_of_their_context(length: int, expected: str, loss_start: int) -> None:
    (encoded,) = encode_examples([Example("context", "target", 0)], Letters(), length)
    assert (encoded.ids, encoded.loss_start) == (ids(expected), loss_start)
    assert encoded.target_tokens == len(expected) - loss_start
    assert encode_prompt("context", Letters()) == ids("context#")


def test_gpt2_form_is_lora_s() -> None:
    folder = os.environ.get("SPDF_DATA")
    if not folder:
        pytest.skip("SPDF_DATA is not set: no GPT-2 vocabulary")
    tokenizer = load_tokenizer(Path(folder) / "gpt2_vocab")
    (encoded,) = encode_examples([Example("name : Blue Spice", "Blue Spice .", 0)], tokenizer, 512)
    # LoRA's file has a space before the completion, and 50256 after both parts.
    assert encoded.ids == [3672, 1058, 4518, 43537, 50256, 4518, 43537, 764, 50256]
    assert encoded.loss_start == 5


def test_labels_are_the_next_target_tokens() -> None:
    items = [EncodedExample([5, 6, 0, 7, 8, 0], 3), EncodedExample([5, 0, 9, 0], 2)]
    tokens, labels = collate(items, rows=3, pad_id=1)
    assert tokens.tolist() == [[5, 6, 0, 7, 8], [5, 0, 9, 1, 1], [1, 1, 1, 1, 1]]
    i = IGNORED
    assert labels.tolist() == [[i, i, 7, 8, 0], [i, 9, 0, i, i], [i] * 5]
    assert int((labels != i).sum()) == sum(item.target_tokens for item in items)
    assert collate([], rows=2, pad_id=1)[1].tolist() == [[i], [i]]


def test_an_epoch_takes_every_example_once_in_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, 1003).tolist()
    batches = FinetuneBatches(lengths, 8, seed=1)
    first, second = batches.epoch(0), batches.epoch(1)
    assert len(batches) == len(first) == 126
    assert sorted(at for batch in first for at in batch) == list(range(1003))
    assert sorted(map(len, first)) == [3] + [8] * 125
    assert FinetuneBatches(lengths, 8, seed=1).epoch(0) == first
    assert first != second and first != FinetuneBatches(lengths, 8, seed=2).epoch(0)


def test_the_order_is_fixed_for_ever() -> None:
    assert FinetuneBatches([1] * 10, 4, seed=7).epoch(3) == [[4, 7, 8, 0], [5, 3, 9, 1], [6, 2]]


def test_batches_hold_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, 4000)
    spread = [int(np.ptp(lengths[batch])) for batch in FinetuneBatches(lengths.tolist(), 8, seed=1).epoch(0)]
    assert np.mean(spread) < 5
    # The batches are not sorted by length.
    means = [lengths[batch].mean() for batch in FinetuneBatches(lengths.tolist(), 8, seed=1).epoch(0)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_are_dealt_the_same_micro_batches_equally_many_each(ranks: int) -> None:
    for size in (1, 2, 7, 16):
        batch = list(range(100, 100 + size))
        parts = [micro_batches(batch, rank, ranks, 3) for rank in range(ranks)]
        assert len({len(part) for part in parts}) == 1
        dealt = {number: micro for part in parts for number, micro in part}
        alone = dict(micro_batches(batch, 0, 1, 3))
        assert [at for part in alone.values() for at in part] == batch
        # Additional micro-batches are empty. They only make the number of passes equal on all ranks.
        assert dealt == alone | {number: [] for number in dealt if number not in alone}
