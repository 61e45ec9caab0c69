"""Tokenizers in the form of a Hugging Face model folder, and back.

GPT-2's two files are the same under other names. A SentencePiece model goes along as it is; for programs that load
``tokenizer.json`` the byte-pair models that `spdf data tokenizer train` makes are also written in that form, when it
gives the same ids on a set of probes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdf_dist.checkpoint.huggingface import MERGES, SENTENCEPIECE, VOCABULARY
from spdf_dist.data.tokenizer import GPT2_FILES, SENTENCEPIECE_FILE, SP_SPACE, SentencePieceTokenizer, Tokenizer

if TYPE_CHECKING:
    import tokenizers

RENAMED = {GPT2_FILES[0]: VOCABULARY, GPT2_FILES[1]: MERGES, SENTENCEPIECE_FILE: SENTENCEPIECE}
"""Our file names and theirs."""

PROBES = (
    "The quick brown fox jumps over the lazy dog, 1234 times; isn't it?",
    "  two spaces,\ttab\nnewline\n\n    def f(x):\n        return x**2  # comment   \n",
    "Zażółć gęślą jaźń, Ελληνικά, русский, 中文, 日本語, العربية, 🙂🚀",
    "name[The Eagle], eatType[coffee shop], food[Indian], priceRange[£20-25]",
    " ",
    "a" * 50 + " " * 50 + "\n" * 5,
)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int, out: Path) -> None:
    """Write the tokenizer that lies in ``folder`` to the model folder ``out``; ``max_length`` is in tokens."""
    for name in (SENTENCEPIECE_FILE,) if isinstance(tokenizer, SentencePieceTokenizer) else GPT2_FILES:
        shutil.copyfile(folder / name, out / RENAMED[name])
    config: dict[str, Any] = {"model_max_length": max_length, "add_prefix_space": False}
    if isinstance(tokenizer, SentencePieceTokenizer):
        end = tokenizer.processor.id_to_piece(tokenizer.eod_id)
        converted = convert_sentencepiece(tokenizer)
        if any(converted.encode(text).ids != tokenizer.encode(text) for text in PROBES):
            print(
                f"{out}: no tokenizer.json: this SentencePiece model has no equal there; use {SENTENCEPIECE}",
                file=sys.stderr,
            )
            return
        (out / "tokenizer.json").write_text(converted.to_str(pretty=False), encoding="utf-8")
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["clean_up_tokenization_spaces"] = False
    else:
        end = "<|endoftext|>"
        config["tokenizer_class"] = "GPT2Tokenizer"
    config |= {"bos_token": end, "eos_token": end, "unk_token": end}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(folder: Path, out: Path) -> bool:
    """Copy a model folder's tokenizer files to ``out`` in our form; False when it has none that we know."""
    for names in (GPT2_FILES, (SENTENCEPIECE_FILE,)):
        if all((folder / RENAMED[name]).is_file() for name in names):
            for name in names:
                shutil.copyfile(folder / RENAMED[name], out / name)
            return True
    return False


def convert_sentencepiece(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    """A byte-pair SentencePiece model with byte fallback, over unnormalised text, for the package ``tokenizers``."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Backend

    processor = tokenizer.processor
    ids = range(processor.vocab_size())
    vocabulary = {processor.id_to_piece(i): i for i in ids}
    # SentencePiece merges the pair whose joint piece has the best score. Each way to split a piece is a merge.
    merges = []
    for i in ids:
        if processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i):
            continue
        piece = processor.id_to_piece(i)
        halves = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += [
            (-processor.get_score(i), i, left, right) for left, right in halves if {left, right} <= vocabulary.keys()
        ]
    merges.sort(key=lambda merge: (*merge[:2], vocabulary[merge[2]], vocabulary[merge[3]]))
    model = models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for _, _, left, right in merges],
        unk_token=processor.id_to_piece(processor.unk_id()),
        fuse_unk=True,
        byte_fallback=True,
    )
    converted = Backend(model)
    converted.normalizer = normalizers.Replace(" ", SP_SPACE)
    converted.decoder = decoders.Sequence([decoders.Replace(SP_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    converted.add_special_tokens([AddedToken(processor.id_to_piece(tokenizer.eod_id), special=True, normalized=False)])
    return converted
