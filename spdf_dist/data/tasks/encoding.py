"""Encodes examples as token ids. Only the target is in the loss (LoRA, Hu et al., 2022)."""

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
    """The ids of one example: context, separator, target, end token."""

    ids: list[int]
    loss_start: int
    """Index in ``ids`` of the first predicted token of the loss."""

    @property
    def target_tokens(self) -> int:
        """Number of tokens in the loss, including the end token."""
        return len(self.ids) - self.loss_start


def encode_prompt(context: str, tokenizer: Tokenizer) -> list[int]:
    """The ids from which generation starts: start tokens, context, and the end-of-document token as separator."""
    return [*tokenizer.start_ids, *tokenizer.encode(context), tokenizer.eod_id]


def encode_examples(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> list[EncodedExample]:
    """Encode as LoRA does: ``context <eod> ' ' + target <eod>``, after the tokenizer's start tokens if it has any.

    An example longer than ``max_length`` tokens loses the end of its context. If the target is still too long, it loses
    its end too.
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


def collate(items: Sequence[EncodedExample], rows: int, pad_id: int, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """A micro-batch, padded at the end to the length of its longest item and to ``rows`` rows.

    The length is rounded up to a ``multiple``: sequence parallelism divides it among the tensor ranks.

    Returns:
        tokens, int64 [rows, T], and labels, int64 [rows, T]. A label is the next token where it is in the loss, else
        ``IGNORED``.
    """
    import torch

    width = -(-max((len(item.ids) - 1 for item in items), default=1) // multiple) * multiple
    tokens = torch.full((rows, width), pad_id, dtype=torch.int64)
    labels = torch.full((rows, width), IGNORED, dtype=torch.int64)
    for row, item in enumerate(items):
        ids = torch.tensor(item.ids)
        tokens[row, : len(ids) - 1] = ids[:-1]
        labels[row, item.loss_start - 1 : len(ids) - 1] = ids[item.loss_start :]
    return tokens, labels
