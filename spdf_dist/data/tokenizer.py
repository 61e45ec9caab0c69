"""One interface for tokenizers: SentencePiece models, GPT-2's byte-level BPE, and Hugging Face tokenizers.

A tokenizer is a file or a folder:

* ``NAME.model``: a SentencePiece model (:mod:`spdf_dist.data.tokenizer_training` makes one);
* a folder with ``encoder.json`` and ``vocab.bpe``: GPT-2's vocabulary, 50,257 ids, as in the SPDF paper;
* a folder with ``tokenizer.model``, as :meth:`Tokenizer.save` writes it into a checkpoint or a packed folder;
* a Hugging Face ``tokenizer.json``, or a folder with one (:mod:`spdf_dist.data.tokenizer_json`).
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from spdf_dist.base.atomic_files import write_bytes
from spdf_dist.base.extras import require_extra
from spdf_dist.config.errors import UserError, names_file

SENTENCEPIECE_FILE = "tokenizer.model"
GPT2_FILES = ("encoder.json", "vocab.bpe")
GPT2_END = "<|endoftext|>"

# GPT-2's rule that splits text into words before the merges. It needs the ``regex`` package, as the original encoder.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ADDED_TOKEN = re.compile(r"<\|.*\|>|<.*>|\[[A-Z_0-9]+\]")
"""Added tokens, which are not the result of a merge."""
CACHED_BYTES = 200 << 20
"""Upper limit of the word cache of a process. The cache is cleared when it is reached."""
LONGEST_CACHED_WORD = 64
"""Longest cached word in characters. Longer words, as in DNA or in scripts without spaces, rarely recur."""
WORD_BYTES = 250
ID_BYTES = 40
"""Approximate memory of Python for a cached word, and for each of its ids."""

# SentencePiece encodes a space as this character. Therefore decoding would turn this character of a text into a space.
SP_SPACE = "▁"


class Tokenizer(ABC):
    """Encodes text as ids in ``[0, vocab_size)``. ``eod_id`` ends a document and is never the encoding of text."""

    vocab_size: int
    eod_id: int
    digest: str
    """sha256 (hex) of the names and contents of the tokenizer's files, independent of their folder."""
    start_ids: tuple[int, ...] = ()
    """Ids before the text of each document; empty for most tokenizers."""
    unknown_id: int | None = None
    """The id of characters that the vocabulary lacks; None for a tokenizer that encodes every text."""
    cuts_at_lines: bool = True
    """Whether a text may be encoded in parts that are cut after a line end between two visible ASCII characters."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without ``eod_id``."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``. ``eod_id`` is left out. Bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files into ``folder`` (made if missing). ``load_tokenizer`` can open the folder."""

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without ``eod_id``."""
        return self.encode_batch([text])[0]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece ``.model`` file."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        self.path = path
        with names_file(path):
            content = path.read_bytes()
        if not content:  # SentencePiece would write a log line before its error
            raise UserError(f"{path} is empty; train a tokenizer with `spdf data tokenizer train`")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            self.vocab_size = int(self.processor.vocab_size())
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{path} is not a SentencePiece model; train one with `spdf data tokenizer train`"
            ) from error
        self.eod_id = int(self.processor.eos_id())
        if self.eod_id < 0:
            raise UserError(f"{path} has no end-of-sentence piece to end documents with; train it with eos_id >= 0")
        self.digest = files_digest([(SENTENCEPIECE_FILE, content)])
        byte_ids = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._byte_of = {i: byte for byte, i in enumerate(byte_ids) if self.processor.is_byte(i)}
        self._space = [byte_ids[byte] for byte in SP_SPACE.encode()]
        start = int(self.processor.bos_id())
        self.start_piece = None if start < 0 else str(self.processor.id_to_piece(start))
        """The piece that the model has for the start of a text. This project does not use it."""
        self._bytes_known = all(i in self._byte_of for i in self._space)
        self._no_utf8 = byte_ids[0xFF]
        self.unknown_id = None if len(self._byte_of) == 256 else int(self.processor.unk_id())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids = self.processor.encode(list(texts), out_type=int, num_threads=1)
        if self._bytes_known:
            for at, text in enumerate(texts):
                if SP_SPACE in text:
                    ids[at] = self._encode_around_space_sign(text)
        return ids

    def _encode_around_space_sign(self, text: str) -> list[int]:
        """Encode each U+2581 as its bytes, and the parts between as usual."""
        first, *rest = self.processor.encode(text.split(SP_SPACE), out_type=int, num_threads=1)
        return first + [i for part in rest for i in self._space + part]

    def decode(self, ids: Sequence[int]) -> str:
        """As :meth:`Tokenizer.decode`. In a run of byte pieces that is not UTF-8, each byte becomes U+FFFD.

        SentencePiece would keep the valid parts of the run, but Hugging Face's decoder does not. This decoder follows
        Hugging Face, so that the texts of an exported model are equal.
        """
        kept: list[int] = []
        for is_bytes, group in groupby((int(i) for i in ids if i != self.eod_id), key=self._byte_of.__contains__):
            run = list(group)
            if is_bytes:
                try:
                    bytes(self._byte_of[i] for i in run).decode()
                except UnicodeDecodeError:
                    run = [self._no_utf8] * len(run)  # 0xFF is never valid in UTF-8: one U+FFFD per byte
            kept += run
        return self.processor.decode(kept)

    def save(self, folder: str | Path) -> None:
        copy_files([(self.path, SENTENCEPIECE_FILE)], Path(folder))


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE, from ``encoder.json`` and ``vocab.bpe``.

    Words are split by GPT-2's regular expression. A bounded cache keeps their ids, so that only new words need merges.
    The splitter of the package ``tokenizers`` gives the same ids at about a third of this speed.
    ``<|endoftext|>`` in a text is encoded as ordinary text.
    """

    def __init__(self, folder: Path) -> None:
        require_extra("hf", "GPT-2's tokenizer")
        import regex  # type: ignore[import-untyped]
        import tokenizers

        self.folder = folder
        vocabulary, merges = (folder / name for name in GPT2_FILES)
        try:
            entries = json.loads(vocabulary.read_text(encoding="utf-8"))
            model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(
                f"{folder}: {' and '.join(GPT2_FILES)} are not GPT-2's vocabulary files ({error})"
            ) from error
        self.vocab_size = len(entries)
        if not all(type(value) is int for value in entries.values()):
            raise UserError(f"{vocabulary}: the ids are not whole numbers")
        if sorted(entries.values()) != list(range(self.vocab_size)):
            raise UserError(f"{vocabulary}: the ids are not 0 to {self.vocab_size - 1}; is the file whole?")
        if GPT2_END not in entries:
            raise UserError(f"{vocabulary} has no {GPT2_END} to end documents with")
        missing = set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - entries.keys()
        if missing:
            raise UserError(f"{vocabulary} lacks {len(missing)} of the 256 bytes; is the file whole?")
        self.eod_id = entries[GPT2_END]
        check_merges(entries, merges)
        self.digest = files_digest([(path.name, path.read_bytes()) for path in (vocabulary, merges)])
        self._find_words = regex.compile(GPT2_WORDS).findall
        self._merges = tokenizers.Tokenizer(model)
        self._merges.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._merges.decoder = tokenizers.decoders.ByteLevel()
        self._words = WordCache(self._merges)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        result = []
        for text in texts:
            ids: list[int] = []
            for word_ids in map(self._words.__getitem__, self._find_words(text)):
                ids += word_ids
            result.append(ids)
        return result

    def decode(self, ids: Sequence[int]) -> str:
        return self._merges.decode([int(i) for i in ids if i != self.eod_id], skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        copy_files([(self.folder / name, name) for name in GPT2_FILES], Path(folder))


def check_merges(entries: dict[str, int], merges: Path) -> None:
    """Raise UserError unless a merge makes each entry of the vocabulary except bytes and added tokens.

    Without this check, a truncated merges file would silently give other ids.
    """
    # For the package tokenizers, a carriage return without a newline is part of its line.
    lines = [line.removesuffix("\r") for line in merges.read_bytes().decode("utf-8").split("\n")]
    made = {left + right for left, space, right in (line.partition(" ") for line in lines) if space}
    lacking = [entry for entry in entries if len(entry) > 1 and not ADDED_TOKEN.fullmatch(entry) and entry not in made]
    if lacking:
        raise UserError(
            f"{merges}: no merge makes {lacking[0]!r:.60} and {len(lacking) - 1} other entries of the vocabulary; "
            "is the file whole?"
        )


class WordCache(dict[str, list[int]]):
    """The ids of words. A missing word is encoded. ``CACHED_BYTES`` bounds the memory."""

    def __init__(self, merges: Any) -> None:
        super().__init__()
        self._merges = merges
        self._bytes = 0

    def __missing__(self, word: str) -> list[int]:
        ids: list[int] = self._merges.encode(word, add_special_tokens=False).ids
        if len(word) <= LONGEST_CACHED_WORD:
            self._bytes += WORD_BYTES + 4 * len(word) + ID_BYTES * len(ids)
            if self._bytes > CACHED_BYTES:
                self.clear()
                self._bytes = 0
            self[word] = ids
        return ids


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer at ``path``. The module's docstring lists the formats.

    Raises:
        UserError: ``path`` is missing, has an unknown format, or has damaged files.
    """
    from spdf_dist.data.tokenizer_json import JSON_FILE, JsonTokenizer

    path = Path(path)
    if path.is_file():
        if path.suffix == ".model":
            return SentencePieceTokenizer(path)
        if path.name == JSON_FILE:
            return JsonTokenizer(path)
        raise UserError(f"{path} is not a tokenizer: give a SentencePiece .model file, a {JSON_FILE}, or {forms()}")
    if not path.is_dir():
        raise UserError(f"the tokenizer {path} does not exist: give a .model file, a {JSON_FILE}, or {forms()}")
    if (path / SENTENCEPIECE_FILE).is_file():
        return SentencePieceTokenizer(path / SENTENCEPIECE_FILE)
    missing = [name for name in GPT2_FILES if not (path / name).is_file()]
    if not missing:
        return Gpt2Tokenizer(path)
    if (path / JSON_FILE).is_file():
        return JsonTokenizer(path / JSON_FILE)
    if len(missing) == 1:
        raise UserError(f"the tokenizer folder {path} lacks {missing[0]}; `spdf data fetch gpt2-vocab` gets both files")
    raise UserError(f"the folder {path} holds no tokenizer: expected {forms()}")


def forms() -> str:
    """The formats of a tokenizer folder, as text for messages."""
    return f"a folder with {' and '.join(GPT2_FILES)}, with {SENTENCEPIECE_FILE} or with tokenizer.json"


def files_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """sha256 (hex) of names, lengths and contents."""
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def copy_files(files: Iterable[tuple[Path, str]], folder: Path) -> None:
    """Copy each file into ``folder`` under its new name. A copy appears only when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in files:
        write_bytes(folder / name, source.read_bytes())
