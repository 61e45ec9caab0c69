"""Any Hugging Face ``tokenizer.json`` as a tokenizer: Llama, Qwen, NeoX, OLMo and others.

The package ``tokenizers`` runs the unchanged file. Two rules are added:

* The name of a special token in a text is ordinary text. A text never contains an end of document.
* A document begins with the tokens that the file's post-processor puts before a text (such as Llama's
  ``<|begin_of_text|>``), and ends with the end-of-document token. Tokens that the post-processor puts after a text are
  not used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spdf_dist.base.extras import require_extra
from spdf_dist.config.errors import UserError
from spdf_dist.data.tokenizer import Tokenizer, copy_files, files_digest

JSON_FILE = "tokenizer.json"
WITHOUT_MERGE = 0.1
"""Largest share of a BPE vocabulary that no merge may make. Some published vocabularies have a few such entries."""
CONFIG_FILE = "tokenizer_config.json"
KNOWN_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
"""Names of end-of-document tokens, for a file without a ``tokenizer_config.json`` that names one."""

IN_BRACKETS = re.compile("<.*>")
"""Special tokens, and bytes such as <0x0A> in vocabularies that came from SentencePiece. No merge makes them."""

LONG_TEXT = 1 << 20
"""Characters. Longer texts are encoded in parts where the tokenizer allows it: the package needs more than a hundred
bytes per byte of a text."""
LINE_CUT = re.compile(r"(?<=[!-~]\n)(?=[!-~])")
"""A line end between visible ASCII characters, at which `Tokenizer.cuts_at_lines` allows to cut."""
WORD_CUT = re.compile(r"(?<=[a-z])(?= [a-z])|(?<=[!-~]\n)(?=[!-~])")
"""Also a space between two letters."""

RARE_TEXT = "\U0001f6f8\u16e5"
"""Characters that few vocabularies have."""


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json``, and the ``tokenizer_config.json`` beside it if there is one."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # packing uses its own processes
        require_extra("hf", "a tokenizer.json")
        import tokenizers

        self.path = path
        config = path.with_name(CONFIG_FILE)
        self._files = [(path, JSON_FILE)] + ([(config, CONFIG_FILE)] if config.is_file() else [])
        try:
            contents = [(name, source.read_bytes()) for source, name in self._files]
            self._backend = tokenizers.Tokenizer.from_buffer(contents[0][1])
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{path} is not a tokenizer.json: {' '.join(str(error).split())[:200]}") from None
        self._backend.no_padding()
        self._backend.no_truncation()
        if isinstance(self._backend.model, tokenizers.models.BPE):
            self._backend.model.dropout = None  # it would draw the ids of a text at random
        # This is the only encoding with special tokens: it shows the tokens that the post-processor adds.
        framed = self._backend.encode("", add_special_tokens=True).ids
        self._backend.encode_special_tokens = True
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size == 0:
            raise UserError(f"{path} has no tokens")
        missing = set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()
        if missing and isinstance(self._backend.decoder, tokenizers.decoders.ByteLevel):
            raise UserError(f"{path} lacks {len(missing)} of the 256 bytes; is the file whole?")
        check_merges(path, json.loads(contents[0][1]))
        self.eod_id = self._end_id(named_end(config))
        self.end_token = str(self._backend.id_to_token(self.eod_id))
        self.start_ids = tuple(framed[: framed.index(self.eod_id)] if self.eod_id in framed else framed)
        self.digest = files_digest(contents)
        self._check_encoding()
        self.cuts_at_lines = self._joins(["The quick brown fox\n", "jumps over (it).\n", "x = 3\n"])
        joins = self._joins(["The quick", " brown fox jumps", " over the dogs, i.e.", " it"])
        self._cut = WORD_CUT if joins and not any(map(WORD_CUT.search, self.added_texts())) else LINE_CUT

    def _end_id(self, named: str | None) -> int:
        """The id of the end-of-document token. Raises UserError when there is none."""
        if named is not None:
            found = self._backend.token_to_id(named)
            if found is None:
                raise UserError(f"{self.path}: its {CONFIG_FILE} names the end token {named!r}, which it does not have")
            return int(found)
        for name in KNOWN_ENDS:
            found = self._backend.token_to_id(name)
            if found is not None:
                return int(found)
        raise UserError(
            f"{self.path}: no token ends documents; name one as eos_token in a {CONFIG_FILE} beside it "
            f"(known by name: {', '.join(KNOWN_ENDS)})"
        )

    def _check_encoding(self) -> None:
        """Raise UserError if a text may contain the end of a document, or if unknown characters would be lost."""
        self.encode(self.end_token)
        ids = self.encode(RARE_TEXT)
        if not ids:
            raise UserError(
                f"{self.path} leaves out characters that it does not know: it has neither bytes nor an unknown token"
            )
        if not set(RARE_TEXT) & set(self.decode(ids)):
            self.unknown_id = ids[-1]

    def _joins(self, parts: list[str]) -> bool:
        """Whether the ids of a text are those of its parts."""
        return self.encode("".join(parts)) == [i for part in parts for i in self.encode(part)]

    def added_texts(self) -> list[str]:
        """The added tokens that a text may contain: all but the special ones."""
        return [token.content for token in self._backend.get_added_tokens_decoder().values() if not token.special]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids = self._encode(texts)
        for at, text in enumerate(texts):
            if self.eod_id in ids[at]:
                ids[at] = self._encode_around_end(text)
        return ids

    def _encode_around_end(self, text: str) -> list[int]:
        """Encode each name of the end token in two halves: Unigram vocabularies would encode the name as the token.

        Raises UserError if the text contains the end token even so.
        """
        first, *others = text.split(self.end_token)
        parts = [first]
        for other in others:
            parts[-1] += self.end_token[:1]
            parts.append(self.end_token[1:] + other)
        ids = [i for part in self._encode(parts) for i in part]
        if self.eod_id in ids:
            raise UserError(
                f"{self.path} encodes {text!r:.40} with its end token {self.end_token!r}; name a special token as "
                f"eos_token in a {CONFIG_FILE} beside it"
            )
        return ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self.cuts_at_lines and any(len(text) > 2 * LONG_TEXT for text in texts):
            return [[i for part in parts(text, self._cut) for i in self._encode_whole([part])[0]] for text in texts]
        return self._encode_whole(texts)

    def _encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{self.path} cannot encode a text: {' '.join(str(error).split())[:200]}") from None

    def decode(self, ids: Sequence[int]) -> str:
        dropped = {self.eod_id, *self.start_ids}
        text: str = self._backend.decode([int(i) for i in ids if i not in dropped], skip_special_tokens=False)
        return text

    def save(self, folder: str | Path) -> None:
        copy_files(self._files, Path(folder))


def parts(text: str, cut: re.Pattern[str]) -> Iterator[str]:
    """``text`` in parts of at least ``LONG_TEXT`` characters, each but the last ending at a match of ``cut``."""
    start = 0
    while len(text) - start > LONG_TEXT and (found := cut.search(text, start + LONG_TEXT)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def check_merges(path: Path, content: dict[str, Any]) -> None:
    """Raise UserError if the merges of a BPE vocabulary are cut: without them a text gets other ids."""
    model = content["model"]
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model.get("type") != "BPE" or model.get("ignore_merges") or affixes:
        return
    made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]}
    added = {token["content"] for token in content.get("added_tokens") or ()}
    entries = [
        entry for entry in model["vocab"] if len(entry) > 1 and entry not in added and not IN_BRACKETS.fullmatch(entry)
    ]
    lacking = [entry for entry in entries if entry not in made]
    if len(lacking) > WITHOUT_MERGE * len(entries):
        raise UserError(
            f"{path}: no merge makes {lacking[0]!r:.60} and {len(lacking) - 1} other entries of the vocabulary; "
            "is the file whole?"
        )


def named_end(config: Path) -> str | None:
    """The ``eos_token`` of a ``tokenizer_config.json``, which is a string or an object with ``content``; None without
    one. Raises UserError for a file that cannot be read."""
    token = read_config(config).get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def read_config(config: Path) -> dict[str, Any]:
    """The content of a ``tokenizer_config.json``; empty if there is none. Raises UserError for a damaged file."""
    if not config.is_file():
        return {}
    try:
        tree: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config} cannot be read: {error}") from None
    return tree if isinstance(tree, dict) else {}
