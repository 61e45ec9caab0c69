"""Loads a decoder and its tokenizer from a checkpoint."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from spdf_dist.checkpoint.read import Checkpoint, require_finite
from spdf_dist.config.errors import UserError
from spdf_dist.data.tokenizer import Tokenizer, load_tokenizer
from spdf_dist.evaluation.decoder import Decoder

GPT2_WORDS = 50257
GPT2_PARAGRAPH = 628
"""GPT-2's token for two line ends. LoRA's decoding also stops at it."""


@dataclass(frozen=True)
class Loaded:
    """The model and tokenizer of a checkpoint, for generation and perplexity."""

    decoder: Decoder
    tokenizer: Tokenizer

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an output: the end-of-document token, and with GPT-2's vocabulary the empty line."""
        gpt2 = self.tokenizer.vocab_size == GPT2_WORDS and self.tokenizer.decode([GPT2_PARAGRAPH]) == "\n\n"
        return (self.tokenizer.eod_id, GPT2_PARAGRAPH) if gpt2 else (self.tokenizer.eod_id,)


def device_of(asked: str) -> str:
    """The device that ``--device`` means. Raises UserError for ``cuda`` without a GPU."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use cpu")
    return asked


def load(checkpoint: Checkpoint, tokenizer: Path | None, device: str) -> Loaded:
    """Read a checkpoint as a dense model.

    Args:
        checkpoint: the checkpoint.
        tokenizer: a tokenizer to use instead of the checkpoint's; None: the checkpoint's.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.

    Raises:
        UserError: the checkpoint is damaged, has weights that are not finite, or has no tokenizer; the tokenizer has
            more ids than the model; or there is no GPU.
    """
    device = device_of(device)
    model, weights = checkpoint.model, checkpoint.weights()
    for name, weight in weights.items():
        require_finite(weight.numpy(), name, checkpoint.path)
    folder = tokenizer or checkpoint.tokenizer_dir
    if folder is None:
        raise UserError(f"{checkpoint.path} holds no tokenizer; name one with --tokenizer")
    words = load_tokenizer(folder)
    # A model may have more ids than its tokenizer, such as 50,304 for GPT-2's 50,257. They are never generated.
    if words.vocab_size > model.vocab_size:
        raise UserError(
            f"the tokenizer {folder} has {words.vocab_size} words, the model of {checkpoint.path} {model.vocab_size};"
            " give the one it was trained with"
        )
    if tokenizer is not None:
        warn_of_another(checkpoint, words, tokenizer)
    return Loaded(Decoder(model, weights, device, words=words.vocab_size), words)


def warn_of_another(checkpoint: Checkpoint, tokenizer: Tokenizer, path: Path) -> None:
    """Print a warning on stderr if the checkpoint has another tokenizer than the given one."""
    try:
        own = checkpoint.tokenizer_dir
        differs = own is not None and load_tokenizer(own).digest != tokenizer.digest
    except UserError:  # a damaged one, which the given one replaces
        return
    if differs:
        print(
            f"WARNING: --tokenizer {path} is not the tokenizer that {checkpoint.path} was trained with: its ids may "
            "mean other words",
            file=sys.stderr,
        )
