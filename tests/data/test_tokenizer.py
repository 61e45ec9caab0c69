import json
import random
import shutil
from pathlib import Path

import pytest
from data_samples import story, write_jsonl

from spdf_dist.cli.main import main
from spdf_dist.config.errors import UserError
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.data.tokenizer_training import train_sentencepiece

HARD_TEXTS = [
    "",
    " leading, trailing ",
    "a\n\nb  c\t d \r\n",
    "日本語 😀 naïve e\u0301",
    "▁x ▁ ▁▁",
    "\x00a\x01\x02\u2028\u00a0\ufeff",
    "<|endoftext|></s><unk><0x0A>",
]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_sentencepiece_gives_every_text_back(sp_model: str, text: str) -> None:
    tokenizer = load_tokenizer(sp_model)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod_id not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_sentencepiece_gives_random_text_back(sp_model: str) -> None:
    tokenizer = load_tokenizer(sp_model)
    rng = random.Random(5)
    alphabet = [chr(c) for c in [*range(0x250), *range(0x2580, 0x2590), *range(0x1F600, 0x1F610)]] + ["\n", " "] * 50
    texts = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(80))) for _ in range(300)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_training_is_deterministic_and_joins_common_words(tmp_path: Path, sp_model: str) -> None:
    train_sentencepiece([story(number) for number in range(200)], 400, tmp_path / "again.model")
    again = load_tokenizer(tmp_path / "again.model")
    assert again.digest == load_tokenizer(sp_model).digest
    assert again.vocab_size == 400
    assert len(again.encode(story(3))) < 0.6 * len(story(3).encode())


def test_train_command_reads_every_format_and_reports_problems(
    tmp_path: Path, three_files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.model"
    command = ["data", "tokenizer", "train", "--vocab-size", "330", "--out", str(out), "--input", *three_files]
    assert main(command) == 0
    assert load_tokenizer(out).vocab_size == 330
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{not json\n", encoding="utf-8")
    assert main([*command, str(broken)]) == 1
    assert f"{broken}:1: not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "words"), [(100000, "or less"), (40, "or more")])
def test_a_vocabulary_size_that_does_not_suit_the_text(tmp_path: Path, size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        train_sentencepiece([story(1)], size, tmp_path / "x.model")
    assert not list(tmp_path.iterdir())


def test_training_on_nothing_and_over_another_model(tmp_path: Path, sp_model: str) -> None:
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece([], 400, tmp_path / "x.model")
    copy = tmp_path / "y.model"
    shutil.copy(sp_model, copy)
    with pytest.raises(UserError, match="other content"):
        train_sentencepiece([story(n) for n in range(50)], 330, copy)
    assert copy.read_bytes() == Path(sp_model).read_bytes()


def test_gpt2_ids(gpt2_folder: str) -> None:
    tokenizer = load_tokenizer(gpt2_folder)
    assert tokenizer.vocab_size == 50257
    assert tokenizer.eod_id == 50256
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.decode([15496, 995, 50256]) == "Hello world"
    ids = tokenizer.encode("a<|endoftext|>b")
    assert 50256 not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"
    for text in HARD_TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gpt2_agrees_with_the_library_on_whole_documents(gpt2_folder: str) -> None:
    """The word cache equals the library's pre-tokenizer and merges."""
    import tokenizers

    folder = Path(gpt2_folder)
    model = tokenizers.models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [story(n) for n in range(20)] + ["It's  we'll\n\n\n  x = 10_000;\t\t// don't", "ÀÉ ñ 12½ ٣ 一二三"]
    assert load_tokenizer(folder).encode_batch(texts) == [library.encode(text).ids for text in texts]


def test_a_saved_tokenizer_loads_with_the_same_digest(tmp_path: Path, sp_model: str, gpt2_folder: str) -> None:
    digests = set()
    for at, source in enumerate((sp_model, gpt2_folder)):
        original = load_tokenizer(source)
        original.save(tmp_path / str(at))
        saved = load_tokenizer(tmp_path / str(at))
        assert saved.digest == original.digest
        assert saved.encode(story(2)) == original.encode(story(2))
        digests.add(saved.digest)
    assert len(digests) == 2


def test_wrong_tokenizers_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    damaged = tmp_path / "bad.model"
    damaged.write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(damaged)
    (tmp_path / "encoder.json").write_text(json.dumps({"a": 0, "b": 7}))
    with pytest.raises(UserError, match=r"lacks vocab\.bpe"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="ids are not 0 to 1"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="is not a tokenizer"):
        load_tokenizer(write_jsonl(tmp_path / "x.jsonl", ["x"]))


def test_an_input_that_cannot_be_read_is_named_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_jsonl(tmp_path / "a.jsonl", ["some text"] * 50), tmp_path / "b.jsonl"
    bad.write_bytes('{"text": "more"}'.encode("utf-16"))
    command = ["data", "tokenizer", "train", "--input", str(good), str(bad), "--vocab-size", "300", "--out"]
    assert main([*command, str(tmp_path / "t.model")]) == 2
    assert capsys.readouterr().err == (f"spdf data: {bad} is UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)\n")
    assert not (tmp_path / "t.model").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["tokenizer", "train", "--vocab-size", "330", "--out", "FILE/x.model", "--input", "TEXT"], "FILE is a file"),
        (["tokenizer", "train", "--vocab-size", "330", "--out", "/dev/null/a/x.model", "--input", "TEXT"], "/dev/null"),
        (["tokenizer", "train", "--vocab-size", "0", "--out", "x.model", "--input", "TEXT"], "--vocab-size 0"),
        (["tokenizer", "train", "--vocab-size", str(10**14), "--out", "x.model", "--input", "TEXT"], "at most"),
        (["tokenizer", "train", "--vocab-size", "1", "--out", "x.model", "--input", "TEXT"], "--vocab-size 1: must"),
        (["tokenizer", "train", "--vocab-size", "-5", "--out", "x.model", "--input", "TEXT"], "--vocab-size -5"),
        (["fetch", "e2e", "--out", "FILE"], "FILE is a file"),
        (["synthetic-e2e", "--seed", "1", "--out", "FILE"], "FILE is a file"),
        (["pack", "--tokenizer", "FILE", "--out", "packed", "--input", "TEXT"], "FILE is empty"),
    ],
)
def test_bad_arguments_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "empty.model"
    file.write_bytes(b"")
    text = write_jsonl(tmp_path / "a.jsonl", [story(1)])
    command = [word.replace("FILE", file.name).replace("TEXT", text.name) for word in command]
    assert main(["data", *command]) == 2
    error = capfd.readouterr().err
    assert words.replace("FILE", file.name) in error and error.count("\n") == 1


@pytest.mark.parametrize("kept_lines", [0, 1, 20_001, 49_990])
def test_merges_that_are_cut_short_are_refused(kept_lines: int, tmp_path: Path, gpt2_folder: str) -> None:
    shutil.copy(Path(gpt2_folder) / "encoder.json", tmp_path)
    lines = (Path(gpt2_folder) / "vocab.bpe").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "vocab.bpe").write_text("".join(lines[:kept_lines]), encoding="utf-8")
    with pytest.raises(UserError, match="is the file whole"):
        load_tokenizer(tmp_path)


def test_files_of_gpt2_that_would_give_other_ids_are_refused(tmp_path: Path, gpt2_folder: str) -> None:
    encoder, merges = (Path(gpt2_folder) / name for name in ("encoder.json", "vocab.bpe"))
    shutil.copy(encoder, tmp_path)
    (tmp_path / "vocab.bpe").write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(tmp_path).encode("a text") == load_tokenizer(gpt2_folder).encode("a text")
    (tmp_path / "vocab.bpe").write_bytes(merges.read_bytes().replace(b"\n", b"\r"))
    with pytest.raises(UserError, match="is the file whole"):
        load_tokenizer(tmp_path)
    shutil.copy(merges, tmp_path)
    entries = json.loads(encoder.read_text(encoding="utf-8"))
    merged = merges.read_text(encoding="utf-8")
    unmerged = next(entry for entry in entries if len(entry) == 1 and entry not in merged)
    entries["<|other|>"] = entries.pop(unmerged)
    (tmp_path / "encoder.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(UserError, match="lacks 1 of the 256 bytes"):
        load_tokenizer(tmp_path)


def test_the_words_kept_are_bounded_in_bytes(gpt2_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(gpt2_folder)
    rng = random.Random(1)
    dna = ["".join(rng.choices("ACGT", k=1000)) for _ in range(200)]
    expected = tokenizer.encode_batch(dna)
    assert len(tokenizer._words) == 0  # type: ignore[attr-defined]
    monkeypatch.setattr("spdf_dist.data.tokenizer.CACHED_BYTES", 100_000)
    sentences = ["".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(30)) for _ in range(2000)]
    ids = tokenizer.encode_batch(["\n".join(sentences)])[0]
    assert len(tokenizer._words) < 100  # type: ignore[attr-defined]
    assert tokenizer.decode(ids) == "\n".join(sentences)
    assert tokenizer.encode_batch(dna) == expected
