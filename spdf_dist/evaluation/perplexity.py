"""Perplexity of a model on text, on packed data, or on the targets of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from spdf_dist.config.errors import UserError
from spdf_dist.data.labels import IGNORED
from spdf_dist.data.loader import PackedDataset
from spdf_dist.data.readers import Problem, documents
from spdf_dist.data.tasks import Example, Task
from spdf_dist.data.tasks.encoding import collate
from spdf_dist.data.tokenizer import Tokenizer
from spdf_dist.evaluation.checkpoint import Loaded
from spdf_dist.evaluation.decoder import Decoder

TOKENS_AT_ONCE = 2048
"""Tokens per forward pass. The limit bounds the memory of the logits."""


@dataclass
class Likelihood:
    """The likelihood of a text under a model."""

    nats: float = 0.0
    """Sum of the negative log-probabilities of all predicted tokens."""
    tokens: int = 0
    """Number of predicted tokens, including the end token of each document."""
    words: int = 0
    """Number of words separated by white space."""

    @property
    def loss(self) -> float:
        """Mean loss, nats per token."""
        return self.nats / self.tokens

    @property
    def per_token(self) -> float:
        """Perplexity per token; infinite where it exceeds the range of floats."""
        return exp(self.loss)

    @property
    def per_word(self) -> float:
        """Perplexity per word, comparable between tokenizers; infinite without words or beyond the range of floats."""
        return exp(self.nats / self.words) if self.words else math.inf


def exp(value: float) -> float:
    """e to the power of ``value``; infinite beyond the range of floats."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


Part = tuple[list[int], int]
"""Token ids of a part of a stream, and the number of words to count with it."""


def text_stream(paths: Sequence[Path], tokenizer: Tokenizer, report: Callable[[Problem], None]) -> Iterator[Part]:
    """The documents of text files as packing joins them, after an initial end-of-document token.

    Empty documents are left out. Raises UserError where the tokenizer would have to encode a document in parts but
    cannot.
    """
    yield [tokenizer.eod_id], 0
    inside = False  # whether a document has begun, which an empty part may end
    for document in documents(paths, report):
        if not document.text and not inside:
            continue
        inside = not document.ends
        if not ((document.starts and document.ends) or tokenizer.cuts_at_lines):
            raise UserError("this tokenizer encodes a text as a whole only; write the documents to a .jsonl file")
        ids = [*(tokenizer.start_ids if document.starts else ()), *tokenizer.encode(document.text)]
        yield ids + [tokenizer.eod_id] * document.ends, len(document.text.split())


def packed_stream(data: PackedDataset, tokenizer: Tokenizer) -> Iterator[Part]:
    """The tokens of a packed folder in order. Words are counted by decoding each document."""
    document: list[int] = []
    for number in range(data.num_sequences):
        ids = data.read(np.array([number]))[0].tolist()
        # The first token of a sequence is the last token of the previous one.
        ids = ids if number == 0 else ids[1:]
        words = 0
        start = 0
        for at, token in enumerate(ids):
            if token == data.eod_id:
                words += len(tokenizer.decode(document + ids[start:at]).split())
                document, start = [], at + 1
        document += ids[start:]
        yield ids, words
    yield [], len(tokenizer.decode(document).split())


def stream_likelihood(decoder: Decoder, parts: Iterable[Part], progress: Callable[[int], object]) -> Likelihood:
    """Likelihood of a stream, cut into context windows. Every token except the first is predicted once.

    ``progress`` is called with the number of predicted tokens of each forward pass.
    """
    window = decoder.model.seq_length
    rows = max(1, TOKENS_AT_ONCE // window)
    total = Likelihood()
    waiting: list[int] = []
    for ids, words in parts:
        waiting += ids
        total.words += words
        while len(waiting) > rows * window:
            block = torch.tensor(waiting[: rows * window + 1])
            add(total, decoder, block[:-1].view(rows, window), block[1:].view(rows, window), progress)
            del waiting[: rows * window]
    for start in range(0, len(waiting) - 1, window):
        block = torch.tensor(waiting[start : start + window + 1])
        add(total, decoder, block[None, :-1], block[None, 1:], progress)
    return total


def task_likelihood(
    loaded: Loaded, task: Task, examples: Sequence[Example], progress: Callable[[int], object]
) -> Likelihood:
    """Likelihood of the targets after their contexts, encoded as in fine-tuning."""
    window = loaded.decoder.model.seq_length
    total = Likelihood(words=sum(len(example.target.split()) for example in examples))
    encoded = task.encode(examples, loaded.tokenizer, window + 1)
    encoded.sort(key=lambda item: len(item.ids))
    at = 0
    while at < len(encoded):
        rows = max(1, TOKENS_AT_ONCE // len(encoded[at].ids))
        batch = encoded[at : at + rows]
        tokens, labels = collate(batch, len(batch), loaded.tokenizer.eod_id)
        add(total, loaded.decoder, tokens, labels, progress)
        at += rows
    return total


def add(
    total: Likelihood,
    decoder: Decoder,
    tokens_NT: torch.Tensor,
    labels_NT: torch.Tensor,
    progress: Callable[[int], object],
) -> None:
    """Add the likelihood of ``labels_NT`` given ``tokens_NT`` to ``total``. Labels of ``IGNORED`` do not count."""
    logits = decoder.logits(tokens_NT.to(decoder.device)).flatten(0, 1)
    labels = labels_NT.to(decoder.device).flatten()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    counted = int((labels != IGNORED).sum())
    total.nats += float(losses.double().sum())
    total.tokens += counted
    progress(counted)
