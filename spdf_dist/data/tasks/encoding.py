"""Examples as token ids, with the loss on the target alone (LoRA, Hu et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdf_dist.data.labels import IGNORED
from spdf_dist.data.tasks.example import Example

if TYPE_CHECKING:
    from torch import Tensor

    from spdf_dist.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """The ids of one example: context, separator, target, end."""

    ids: list[int]
    loss_start: int
    """Index in ``ids`` of the first token that the loss predicts."""

    @property
    def target_tokens(self) -> int:
        """Tokens in the loss, the end included."""
        return len(self.ids) - self.loss_start


def encode_prompt(context: str, tokenizer: Tokenizer) -> list[int]:
    """What generation starts from: the context and the separator, which is the end-of-document token."""
    return [*tokenizer.start_ids, *tokenizer.encode(context), tokenizer.eod_id]


def encode_examples(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> list[EncodedExample]:
    """Encode as LoRA does: ``context <eod> ' ' + target <eod>``, after the tokenizer's start tokens if it has any.

    An example longer than ``max_length`` tokens loses the end of its context; where the target alone is too long, the
    end of the target.
    """
    contexts = tokenizer.encode_batch([example.context for example in examples])
    targets = tokenizer.encode_batch([" " + example.target for example in examples])
    end = [tokenizer.eod_id]
    encoded = []
    for context, target in zip(contexts, targets, strict=True):
        answer = (target + end)[: max_length - 1]
        prompt = [*tokenizer.start_ids, *context][: max_length - 1 - len(answer)] + end
        encoded.append(EncodedExample(prompt + answer, len(prompt)))
    return encoded


def encode_example(example: Example, tokenizer: Tokenizer, max_length: int) -> EncodedExample:
    """:func:`encode_examples` of one."""
    return encode_examples([example], tokenizer, max_length)[0]


def collate(items: Sequence[EncodedExample], rows: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """A micro-batch, padded at the end to its longest item and to ``rows`` rows.

    Returns:
        tokens [rows, T] int64, and labels [rows, T] int64: the next token where it is a target, else ``IGNORED``.
    """
    import torch

    width = max((len(item.ids) - 1 for item in items), default=1)
    tokens = torch.full((rows, width), pad_id, dtype=torch.int64)
    labels = torch.full((rows, width), IGNORED, dtype=torch.int64)
    for row, item in enumerate(items):
        ids = torch.tensor(item.ids)
        tokens[row, : len(ids) - 1] = ids[:-1]
        labels[row, item.loss_start - 1 : len(ids) - 1] = ids[item.loss_start :]
    return tokens, labels
