"""Tokenizers from Hugging Face's tokenizer.json, compared with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from data_samples import story, write_jsonl

from spdf_dist.config.errors import UserError
from spdf_dist.data.loader import PackedDataset
from spdf_dist.data.pack import pack
from spdf_dist.data.tasks.encoding import encode_examples, encode_prompt
from spdf_dist.data.tasks.example import Example
from spdf_dist.data.tokenizer import load_tokenizer

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
WORDS = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""The rule by which Llama 3 splits words."""


def llama_like(folder: Path) -> Path:
    """Byte-level BPE that adds a token before each text, like that of Llama 3."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
    bytes_ = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, bytes_])
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([story(n) for n in range(100)], trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, backend.token_to_id(BEGIN))]
    )
    return saved(backend, folder, {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"})


def sentencepiece_like(folder: Path) -> Path:
    """One piece per word with a space sign before it, like that of Llama 2: each text begins with a space."""
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([story(n) for n in range(100)], trainer)
    return saved(backend, folder, {})


def saved(backend: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = llama_like(tmp_path / "llama")
    theirs = AutoTokenizer.from_pretrained(folder)
    for path in (folder, folder / "tokenizer.json"):
        ours = load_tokenizer(path)
        assert (ours.eod_id, ours.vocab_size) == (theirs.eos_token_id, len(theirs))
        for text in [*(story(n) for n in range(5)), "It's  1234567\n\n x = 10_000;\t\t// don't", "naïve 日本 🙂"]:
            assert [*ours.start_ids, *ours.encode(text)] == theirs.encode(text)
            assert ours.decode([*theirs.encode(text), ours.eod_id]) == text


def test_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    ours = load_tokenizer(llama_like(tmp_path / "llama"))
    ids = ours.encode(f"a{END}b{BEGIN}")
    assert ours.eod_id not in ids and not set(ours.start_ids) & set(ids)
    assert ours.decode(ids) == f"a{END}b{BEGIN}"


def test_packed_documents_begin_and_end_with_their_tokens(tmp_path: Path, three_files: list[str]) -> None:
    folder = llama_like(tmp_path / "llama")
    ours = load_tokenizer(folder)
    pack(three_files, str(folder), str(tmp_path / "packed"), seq_len=16, workers=1)
    data = PackedDataset(tmp_path / "packed")
    rows = data.read(np.arange(data.num_sequences))
    stream = [int(rows[0, 0]), *(int(i) for row in rows for i in row[1:])]
    texts = [story(n) for n in range(30)] + ["".join(story(n) for n in range(30, 45))]
    expected = [i for text in texts for i in (*ours.start_ids, *ours.encode(text), ours.eod_id)]
    assert stream[: len(expected)] == expected
    assert load_tokenizer(tmp_path / "packed" / "tokenizer").digest == ours.digest


def test_tasks_begin_with_the_start_tokens(tmp_path: Path) -> None:
    ours = load_tokenizer(llama_like(tmp_path / "llama"))
    prompt = encode_prompt("name[The Eagle]", ours)
    assert prompt[0] == ours.start_ids[0]
    (encoded,) = encode_examples([Example("name[The Eagle]", "It is.", ())], ours, 64)
    assert encoded.ids[: encoded.loss_start] == prompt


def test_a_tokenizer_that_needs_whole_texts_takes_no_long_file_in_parts(tmp_path: Path, three_files: list[str]) -> None:
    folder = sentencepiece_like(tmp_path / "llama2")
    ours = load_tokenizer(folder)
    assert not ours.cuts_at_lines and ours.decode(ours.encode("the quick fox")) == "the quick fox"
    with pytest.raises(UserError, match=r"b\.txt: this tokenizer encodes a text as a whole only"):
        pack(three_files, str(folder), str(tmp_path / "packed"), seq_len=16, workers=1)
    lines = write_jsonl(tmp_path / "x.jsonl", [story(n) for n in range(9)])
    pack([str(lines)], str(folder), str(tmp_path / "packed"), seq_len=16, workers=1)


def test_long_texts_are_encoded_in_parts_with_the_same_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package needs more than a hundred bytes of memory per byte of a text."""
    text = "\n".join(story(n) for n in range(30)) + "  A  1 \n\n B, c.\r\nd" + "x" * 500 + " end"
    for make in (llama_like, sentencepiece_like):
        tokenizer = load_tokenizer(make(tmp_path / make.__name__))
        with monkeypatch.context() as patched:
            expected = tokenizer.encode(text)
            patched.setattr("spdf_dist.data.tokenizer_json.LONG_TEXT", 100)
            longest = 0
            whole = tokenizer._encode_whole  # type: ignore[attr-defined]

            def encode_whole(texts: list[str]) -> list[list[int]]:
                nonlocal longest
                longest = max(longest, *map(len, texts))
                return whole(texts)  # type: ignore[no-any-return]  # noqa: B023

            patched.setattr(tokenizer, "_encode_whole", encode_whole)
            assert tokenizer.encode_batch([text, "a b"]) == [expected, tokenizer.encode("a b")]
        assert (longest < 800) == (make is llama_like)  # a tokenizer that encodes whole texts gets the whole text


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    folder = llama_like(tmp_path / "llama")
    config, content = folder / "tokenizer_config.json", (folder / "tokenizer.json").read_text()
    config.write_text(json.dumps({"eos_token": {"content": "<nothing>"}}))
    with pytest.raises(UserError, match="names the end token '<nothing>', which it does not have"):
        load_tokenizer(folder)
    config.write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read"):
        load_tokenizer(folder)
    config.unlink()
    assert load_tokenizer(folder).decode([load_tokenizer(folder).eod_id]) == ""
    (folder / "tokenizer.json").write_text(content.replace(END, "<|stop|>"))
    with pytest.raises(UserError, match="no token ends documents; name one as eos_token"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"is not a tokenizer\.json") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_cut_merges_are_refused(tmp_path: Path) -> None:
    path = llama_like(tmp_path / "llama") / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:100]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer.json: no merge makes .* is the file whole\?"):
        load_tokenizer(path)


def test_the_name_of_the_end_token_in_a_text_is_text_for_every_kind_of_vocabulary(tmp_path: Path) -> None:
    folder = sentencepiece_like(tmp_path / "llama2")
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["vocab"] += [["/", -9.0], [">", -9.0], ["<", -9.0]]
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    ours = load_tokenizer(folder)
    for text in ("</s>", "the</s> fox</s>"):
        assert ours.eod_id not in ours.encode(text)
    assert ours.decode(ours.encode("</s>")).replace(" ", "") == "</s>"


def test_ids_are_never_drawn_at_random(tmp_path: Path) -> None:
    folder = llama_like(tmp_path / "llama")
    expected = load_tokenizer(folder).encode(story(1))
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    assert load_tokenizer(folder).encode(story(1)) == expected


def test_vocabularies_that_lose_or_confuse_texts_are_refused(tmp_path: Path) -> None:
    folder = llama_like(tmp_path / "llama")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "e"}')
    with pytest.raises(UserError, match="encodes 'e' with its end token 'e'"):
        load_tokenizer(folder)
    models = tokenizers.models
    characters = models.BPE({"</s>": 0, "a": 1}, [])
    words = models.WordLevel({"</s>": 0, "a": 1})
    pieces = models.Unigram([("</s>", 0.0), ("a", -1.0)])
    for model, message in (
        (characters, "leaves out characters"),
        (words, "cannot encode a text"),
        (pieces, "cannot encode a text"),
    ):
        tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer(tmp_path / "tokenizer.json")
        assert "\n" not in str(caught.value)
