"""Converts tokenizers to the form of a Hugging Face model folder, and back.

GPT-2's two files are the same under other names. A ``tokenizer.json`` is copied with its ``tokenizer_config.json``. A
SentencePiece model is copied. If a ``tokenizer.json`` made from it gives the same ids on a set of probe texts, as for
the byte-pair models of `spdf data tokenizer train`, that file is written too, for programs that need it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdf_dist.base.atomic_files import write_json
from spdf_dist.base.extras import require_extra
from spdf_dist.checkpoint.huggingface import MERGES, SENTENCEPIECE, VOCABULARY
from spdf_dist.config.errors import UserError
from spdf_dist.data.tokenizer import (
    GPT2_FILES,
    SENTENCEPIECE_FILE,
    SP_SPACE,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from spdf_dist.data.tokenizer_json import CONFIG_FILE, JSON_FILE, JsonTokenizer

if TYPE_CHECKING:
    import tokenizers

RENAMED = {GPT2_FILES[0]: VOCABULARY, GPT2_FILES[1]: MERGES, SENTENCEPIECE_FILE: SENTENCEPIECE}
"""File names of this project and those of Hugging Face."""

PROBES = (
    "The quick brown fox jumps over the lazy dog, 1234 times; isn't it?",
    "  two spaces,\ttab\nnewline\n\n    def f(x):\n        return x**2  # comment   \n",
    "Zażółć gęślą jaźń, Ελληνικά, русский, 中文, 日本語, العربية, 🙂🚀",
    "name[The Eagle], eatType[coffee shop], food[Indian], priceRange[£20-25]",
    " ",
    "a" * 50 + " " * 50 + "\n" * 5,
)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int, out: Path) -> None:
    """Write the tokenizer, whose files are in ``folder``, to the model folder ``out``; ``max_length`` is in tokens."""
    if isinstance(tokenizer, JsonTokenizer):
        tokenizer.save(out)
        if not (out / CONFIG_FILE).is_file():
            end = tokenizer.end_token
            named = {"model_max_length": max_length, "eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"}
            write_json(out / CONFIG_FILE, named, indent=2)
        return
    for name in (SENTENCEPIECE_FILE,) if isinstance(tokenizer, SentencePieceTokenizer) else GPT2_FILES:
        shutil.copyfile(folder / name, out / RENAMED[name])
    config: dict[str, Any] = {"model_max_length": max_length, "add_prefix_space": False}
    if isinstance(tokenizer, SentencePieceTokenizer):
        end = tokenizer.processor.id_to_piece(tokenizer.eod_id)
        converted = convert_sentencepiece(tokenizer)
        if any(converted.encode(text).ids != tokenizer.encode(text) for text in PROBES):
            print(
                f"{out}: no {JSON_FILE}: this SentencePiece model has no equal there; use {SENTENCEPIECE}",
                file=sys.stderr,
            )
            return
        (out / JSON_FILE).write_text(converted.to_str(pretty=False), encoding="utf-8")
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["clean_up_tokenization_spaces"] = False
    else:
        end = "<|endoftext|>"
        config["tokenizer_class"] = "GPT2Tokenizer"
    config |= {"bos_token": end, "eos_token": end, "unk_token": end}
    write_json(out / CONFIG_FILE, config, indent=2)


def read_tokenizer(folder: Path, out: Path, vocab_size: int) -> bool:
    """Copy a model folder's tokenizer, in this project's form, to the empty folder ``out``.

    A tokenizer fits if it can be loaded and has at most ``vocab_size`` ids. Returns whether one fits; if not, the
    reason is printed on stderr.
    """
    reasons = []
    for needed, optional in ((GPT2_FILES, ()), ((SENTENCEPIECE_FILE,), ()), ((JSON_FILE,), (CONFIG_FILE,))):
        names = [name for name in (*needed, *optional) if (folder / RENAMED.get(name, name)).is_file()]
        if not set(needed) <= set(names):
            continue
        for name in names:
            shutil.copyfile(folder / RENAMED.get(name, name), out / name)
        misfits = misfit(out, vocab_size)
        if misfits is None:
            return True
        reasons.append(misfits)
    reason = "; ".join(reasons) or f"it has neither {VOCABULARY} and {MERGES} nor {SENTENCEPIECE} nor {JSON_FILE}"
    print(f"{folder}: no tokenizer is taken along: {reason}", file=sys.stderr)
    return False


def misfit(out: Path, vocab_size: int) -> str | None:
    """The reason why the tokenizer in ``out`` does not fit a model with ``vocab_size`` ids, or None if it fits.

    The files of a tokenizer that does not fit are deleted.
    """
    require_extra("hf", "a tokenizer of Hugging Face")
    try:
        found = load_tokenizer(out).vocab_size
        if found <= vocab_size:
            return None
        reason = f"its tokenizer has {found} ids, the model {vocab_size}"
    except UserError as error:
        reason = str(error)
        for ours, theirs in RENAMED.items():
            reason = reason.replace(f"{out / ours}", theirs).replace(ours, theirs)
        reason = reason.replace(f"{out}: ", "").replace(f"{out}/", "")
    for name in (*RENAMED, JSON_FILE, CONFIG_FILE):
        (out / name).unlink(missing_ok=True)
    return reason


def convert_sentencepiece(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    """A byte-pair SentencePiece model with byte fallback, over unnormalised text, for the package ``tokenizers``."""
    require_extra("hf", "a tokenizer of Hugging Face")
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Backend

    processor = tokenizer.processor
    ids = range(processor.vocab_size())
    vocabulary = {processor.id_to_piece(i): i for i in ids}
    # SentencePiece merges the pair whose joined piece has the best score, so each way to split a piece is a merge.
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
