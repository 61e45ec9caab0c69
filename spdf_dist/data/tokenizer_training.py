"""Trains a SentencePiece tokenizer that reproduces every text exactly.

The model is byte-pair encoding with byte fallback. It does not normalise Unicode, adds no space, and keeps runs of
spaces. Newlines and unknown characters are encoded as bytes.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.data.placing import made, placed
from spdf_dist.data.tokenizer import GPT2_END, SP_SPACE

LINE_CHARACTERS = 1000
"""Longer lines are cut, because SentencePiece skips sentences of more than 4,192 bytes."""
SMALLEST_VOCABULARY = 2
"""SentencePiece names the smallest possible size only if the two control pieces fit."""
MAX_VOCABULARY = 1 << 28
SAMPLED_LINES = 10_000_000
"""SentencePiece samples this many lines with its fixed seed when there are more, which bounds the memory."""


def train_sentencepiece(texts: Iterable[str], vocab_size: int, out: str | Path) -> None:
    """Train on ``texts`` and write the model file ``out``. Equal texts give an equal file.

    Raises:
        UserError: ``vocab_size`` does not fit the text, there is no text, or ``out`` exists with other content or
            cannot be written.
    """
    import sentencepiece

    out = Path(out)
    if out.suffix != ".model":
        raise UserError(f"--out {out}: a SentencePiece model's name ends in .model")
    if not SMALLEST_VOCABULARY <= vocab_size <= MAX_VOCABULARY:
        raise UserError(
            f"--vocab-size {vocab_size}: must be positive, at most {MAX_VOCABULARY:,}, and hold the 256 bytes and the "
            "text's characters"
        )
    made(out.parent)
    model = io.BytesIO()
    failures: list[BaseException] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=noting(lines(texts), failures),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9999,
            input_sentence_size=SAMPLED_LINES,
            shuffle_input_sentence=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=GPT2_END,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if failures:  # SentencePiece would put its text, with the place in the code, into its own error
            raise failures[0] from None
        raise UserError(explain(str(error), vocab_size)) from error
    with placed(out, "wb") as file:
        file.write(model.getvalue())


def lines(texts: Iterable[str]) -> Iterator[str]:
    """The lines of all texts without line ends, cut into at most ``LINE_CHARACTERS`` characters."""
    for text in texts:
        for line in text.replace(SP_SPACE, "").split("\n"):
            for start in range(0, len(line), LINE_CHARACTERS):
                yield line[start : start + LINE_CHARACTERS]


def noting(texts: Iterable[str], failures: list[BaseException]) -> Iterator[str]:
    """``texts``; an exception is also appended to ``failures``."""
    try:
        yield from texts
    except BaseException as error:
        failures.append(error)
        raise


def explain(error: str, vocab_size: int) -> str:
    """A message for the user from an error of SentencePiece."""
    if found := re.search(r"Vocabulary size too high \(\d+\).*?<= (\d+)", error):
        return f"--vocab-size {vocab_size} is more than this text supports; use {found[1]} or less, or more text"
    if found := re.search(r"Vocabulary size is smaller than required_chars\D*\d+ vs (\d+)", error):
        return (
            f"--vocab-size {vocab_size} is too small for the bytes and characters of this text; use {found[1]} or more"
        )
    if "sentences_.empty()" in error or "Input corpus" in error:
        return "the input holds no text to train a tokenizer on"
    return f"SentencePiece could not train a tokenizer: {' '.join(error.split())}"
