"""Converts tokenizers to the form of a Hugging Face model folder, and back.

GPT-2's two files are the same under other names. A ``tokenizer.json`` is copied with its ``tokenizer_config.json``.
It is preferred to other files beside it that give other ids, because transformers uses it. A SentencePiece model is
copied. If a ``tokenizer.json`` made from it gives the same ids on a set of probe texts, as for the byte-pair models of
`spdf data tokenizer train`, that file is written too, for programs that need it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdf_dist.base.atomic_files import write_json
from spdf_dist.base.extras import require_extra
from spdf_dist.checkpoint.huggingface import MERGES, SENTENCEPIECE, VOCABULARY
from spdf_dist.config.errors import UserError
from spdf_dist.data.tokenizer import (
    GPT2_END,
    GPT2_FILES,
    SENTENCEPIECE_FILE,
    SP_SPACE,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from spdf_dist.data.tokenizer_json import CONFIG_FILE, JSON_FILE, JsonTokenizer, named_end, read_config

if TYPE_CHECKING:
    import tokenizers

RENAMED = {GPT2_FILES[0]: VOCABULARY, GPT2_FILES[1]: MERGES, SENTENCEPIECE_FILE: SENTENCEPIECE}
"""File names of this project and those of Hugging Face."""
GPT2_CLASSES = ("GPT2Tokenizer", "PreTrainedTokenizer", "TokenizersBackend")
"""Classes of transformers that encode as GPT-2 does, with GPT-2's two files."""

PROBES = (
    "The quick brown fox jumps over the lazy dog, 1234 times; isn't it?",
    "  two spaces,\ttab\nnewline\n\n    def f(x):\n        return x**2  # comment   \n",
    "Zażółć gęślą jaźń, Ελληνικά, русский, 中文, 日本語, العربية, 🙂🚀",
    "name[The Eagle], eatType[coffee shop], food[Indian], priceRange[£20-25]",
    " ",
    "a" * 50 + " " * 50 + "\n" * 5,
    "e\u0301 \uff11\u00bd CamelCase HTTPServer2 don't DON'T x86_64",
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
                f"{out}: no {JSON_FILE}: it has no equivalent of this SentencePiece model; use {SENTENCEPIECE}",
                file=sys.stderr,
            )
            unknown = tokenizer.processor.id_to_piece(tokenizer.processor.unk_id())
            config |= {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": False}
            config["add_prefix_space"] = tokenizer.processor.encode("a", out_type=str)[0].startswith(SP_SPACE)
            config |= {"bos_token": tokenizer.start_piece or end, "eos_token": end, "unk_token": unknown}
            write_json(out / CONFIG_FILE, config, indent=2)
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
    reasons: list[str] = []
    for needed, optional in ((GPT2_FILES, ()), ((SENTENCEPIECE_FILE,), ()), ((JSON_FILE,), (CONFIG_FILE,))):
        names = [name for name in (*needed, *optional) if (folder / RENAMED.get(name, name)).is_file()]
        if not set(needed) <= set(names):
            continue
        for name in names:
            shutil.copyfile(folder / RENAMED.get(name, name), out / name)
        misfits = misfit(folder, out, vocab_size)
        if misfits is None:
            return True
        reasons.append(misfits)
        for name in (*RENAMED, JSON_FILE, CONFIG_FILE):
            (out / name).unlink(missing_ok=True)
    reason = "; ".join(reasons) or f"it has neither {VOCABULARY} and {MERGES} nor {SENTENCEPIECE} nor {JSON_FILE}"
    print(f"{folder}: no tokenizer is taken along: {reason}", file=sys.stderr)
    return False


def misfit(folder: Path, out: Path, vocab_size: int) -> str | None:
    """The reason why the tokenizer in ``out``, from the model folder ``folder``, is not taken; None if it is."""
    require_extra("hf", "a tokenizer of Hugging Face")
    try:
        tokenizer = load_tokenizer(out)
        if tokenizer.vocab_size > vocab_size:
            return f"its tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size}"
        return None if isinstance(tokenizer, JsonTokenizer) else other_encoding(tokenizer, folder)
    except UserError as error:
        reason = str(error)
        for ours, theirs in RENAMED.items():
            reason = reason.replace(f"{out / ours}", theirs).replace(ours, theirs)
        return reason.replace(f"{out}: ", "").replace(f"{out}/", "").replace(f"{folder}/", "")


def other_encoding(tokenizer: Tokenizer, folder: Path) -> str | None:
    """The difference to the tokenizer that transformers loads from the model folder; None without a difference.

    transformers uses the ``tokenizer.json`` if there is one. Without it, it follows the ``tokenizer_config.json``.
    """
    name = SENTENCEPIECE if isinstance(tokenizer, SentencePieceTokenizer) else VOCABULARY
    theirs = None
    if (folder / JSON_FILE).is_file():
        with contextlib.suppress(UserError):
            theirs = JsonTokenizer(folder / JSON_FILE)
    if theirs is not None:
        same = (theirs.eod_id, theirs.start_ids) == (tokenizer.eod_id, tokenizer.start_ids) and all(
            theirs.encode(text) == tokenizer.encode(text) for text in (*PROBES, *theirs.added_texts())
        )
        return None if same else f"{name} gives other ids than {JSON_FILE}"
    config = read_config(folder / CONFIG_FILE)
    piece = tokenizer.start_piece if isinstance(tokenizer, SentencePieceTokenizer) else GPT2_END
    if piece is not None and config.get("add_bos_token", isinstance(tokenizer, SentencePieceTokenizer)):
        print(f"{folder}: {name}: texts will not begin with {piece}, as they do in transformers", file=sys.stderr)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return None
    kind = str(config.get("tokenizer_class") or GPT2_CLASSES[0])
    if not kind.startswith(GPT2_CLASSES):
        return f"{CONFIG_FILE} names {kind}, which divides a text otherwise than GPT-2, and there is no {JSON_FILE}"
    if config.get("add_prefix_space"):
        return f"{CONFIG_FILE} has add_prefix_space, and there is no {JSON_FILE}"
    end = named_end(folder / CONFIG_FILE)
    if end not in (None, GPT2_END):
        return f"{CONFIG_FILE} names the end token {end!r}, not {GPT2_END}, and there is no {JSON_FILE}"
    return None


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
