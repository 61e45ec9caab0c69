import errno
import gzip
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from data_samples import story, write_jsonl

from spdf_dist.config.errors import UserError
from spdf_dist.data import readers
from spdf_dist.data.readers import Problem, check_inputs, documents, read_chunks


def read(*paths: Path) -> tuple[list[readers.Document], list[Problem]]:
    problems: list[Problem] = []
    return list(documents(list(paths), problems.append)), problems


def test_all_formats_give_the_same_texts(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [story(n) for n in range(700)]
    plain = write_jsonl(tmp_path / "a.jsonl", texts, "Stories")
    content = plain.read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content[:50000]) + gzip.compress(content[50000:]))
    half = zstandard.ZstdCompressor()
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"  # an empty frame, as pzstd writes it
    frames = [skipped, half.compress(content[:9999]), half.compress(b""), half.compress(content[9999:])]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    meta = [{"pile_set_name": "Stories"}] * len(texts)
    pq.write_table(pa.table({"text": texts, "meta": meta}), tmp_path / "d.parquet", row_group_size=100)
    for path in sorted(tmp_path.iterdir()):
        found, problems = read(path)
        assert [d.text for d in found] == texts, path
        assert {d.set_name for d in found} == {"Stories"}
        assert not problems


def test_a_text_file_is_one_document_cut_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    text = "".join(story(n) + "one\ntwo\n" for n in range(50))
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    found, problems = read(path)
    assert "".join(d.text for d in found) == text
    assert len(found) > 10
    assert [d.ends for d in found] == [False] * (len(found) - 1) + [True]
    assert not problems


def test_a_text_file_without_line_ends_is_read_in_bounded_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(readers, "LARGEST_PIECE", 4000)
    text = "ä☕" * 5000
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    found, problems = read(path)
    assert "".join(d.text for d in found) == text
    assert max(len(d.text.encode()) for d in found) <= 4000
    assert not problems


def test_documents_with_endless_words_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte-pair encoding of a word of 64 MiB would need 13 GB."""
    monkeypatch.setattr(readers, "LONGEST_WORD", 1000)
    good = ["a " * 2000, "x" * 1000, "\u4e00" * 500]
    write_jsonl(tmp_path / "a.jsonl", [good[0], "x" * 1001, good[1], "a" + " " * 1001 + "b", good[2]])
    found, problems = read(tmp_path / "a.jsonl")
    assert [d.text for d in found] == good
    assert [p.line for p in problems] == [2, 4]
    assert problems[0].what == "a run of 1,001 characters without a space, or of spaces; is it a text?"


BROKEN_LINES = {
    b'{"text": "cut': "not valid JSON",
    b"[1, 2]": "not a JSON object",
    b'{"body": "x"}': "no 'text' string",
    b'{"text": 5}': "no 'text' string",
    b'{"text": "\xff\xfe"}': "invalid UTF-8 at byte 10",
    b'{"text": "\\ud800"}': "unpaired surrogate",
}


@pytest.mark.parametrize("line", BROKEN_LINES)
def test_a_broken_line_is_named_and_the_rest_is_kept(tmp_path: Path, line: bytes) -> None:
    good = [json.dumps({"text": story(n)}).encode() for n in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*good[:2], line, b"", *good[2:]]))
    found, problems = read(path)
    assert [d.text for d in found] == [story(n) for n in range(4)]
    assert [(p.file, p.line) for p in problems] == [(str(path), 3)]
    assert BROKEN_LINES[line] in problems[0].what


@pytest.mark.parametrize("kind", ["zst", "gz"])
@pytest.mark.parametrize("damage", ["truncated", "damaged"])
def test_a_truncated_or_damaged_file_keeps_what_came_before(tmp_path: Path, kind: str, damage: str) -> None:
    content = "".join(json.dumps({"text": story(n, 400)}) + "\n" for n in range(3000)).encode()
    compressed = zstandard.compress(content) if kind == "zst" else gzip.compress(content)
    at = len(compressed) * 2 // 3
    broken = compressed[:at] if damage == "truncated" else compressed[:at] + b"\xff" * 64 + compressed[at + 64 :]
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(broken)
    good = write_jsonl(tmp_path / "b.jsonl", ["after"])
    found, problems = read(path, good)
    assert problems[0].file == str(path)
    assert problems[0].line > 0
    if damage == "truncated":
        assert len(problems) == 1
        assert "truncated" in problems[0].what
        assert [d.text for d in found[:-1]] == [story(n, 400) for n in range(len(found) - 1)]
        assert len(found) > 100
        assert problems[0].line == len(found)  # the last document is from the other file
    assert found[-1].text == "after"


def test_empty_and_odd_files(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("a.jsonl", "c.txt", "d.parquet"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(b""))
    (tmp_path / "e.parquet").write_bytes(b"PAR1 no parquet at all")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "f.parquet")
    invalid = pa.array([b"fine", b"\xff\xfe", None]).view(pa.string())
    pq.write_table(pa.table({"text": invalid}), tmp_path / "g.parquet")
    (tmp_path / "h.txt").write_bytes(b"one\n\xff\nthree\n")
    found, problems = read(*sorted(tmp_path.iterdir()))
    assert [d.text for d in found] == ["fine", "one\nthree\n"]
    said = [(Path(p.file).name, p.line, p.what.split(":")[0]) for p in problems]
    assert said == [
        *((name, 0, "the file is empty") for name in ("a.jsonl", "b.jsonl.zst", "c.txt", "d.parquet")),
        ("e.parquet", 0, "not readable as parquet"),
        ("f.parquet", 0, "no column 'text'; its columns"),
        ("g.parquet", 2, "invalid UTF-8 at byte 0 of the line"),
        ("g.parquet", 3, "the text is null"),
        ("h.txt", 2, "invalid UTF-8 at byte 0 of the line"),
    ]


@pytest.mark.parametrize(("name", "words"), [("none.jsonl", "does not exist"), (".", "is a folder")])
def test_inputs_that_are_no_files(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_inputs([tmp_path / name])


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(UserError, match=r"known: \.jsonl"):
        check_inputs([tmp_path / "a.doc"])


@pytest.mark.parametrize("kind", ["zst", "gz"])
def test_text_that_compresses_well_is_read_in_bounded_chunks(tmp_path: Path, kind: str) -> None:
    content = b'{"text": "a"}\n' * 500_000
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(zstandard.compress(content) if kind == "zst" else gzip.compress(content))
    chunks = [chunk for chunk in readers.read_chunks(path) if isinstance(chunk, readers.Chunk)]
    assert sum(len(chunk.records) for chunk in chunks) == 500_000
    assert max(sum(len(record or b"") for record in chunk.records) for chunk in chunks) <= readers.BLOCK_BYTES
    steps: list[int] = []

    def counted(parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            steps.append(len(part))
            yield part

    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        whole = readers.frames
        patch.setattr(readers, "STEP_BYTES", 64)
        patch.setattr(readers, "frames", lambda *given: counted(whole(*given)))
        assert sum(map(len, readers.decompressed(file, path.name))) == len(content)
    assert max(steps) <= 64 // 4 * (128 << 10)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf" + (b"one" if name == "a.txt" else b'{"text": "one"}\n')
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(content))
    found, problems = read(tmp_path / name)
    assert "".join(document.text for document in found) == "one"
    assert not problems


def test_set_names_that_are_no_utf8_are_none(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text('{"text": "x", "meta": {"pile_set_name": "\\ud800x"}}\n')
    names = pa.array([b"good", b"\xff", None]).view(pa.string())
    nested = pa.StructArray.from_arrays([names], names=["pile_set_name"])
    pq.write_table(pa.table({"text": ["x"] * 3, "pile_set_name": names}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["x"] * 3, "meta": nested}), tmp_path / "c.parquet")
    found, problems = read(*sorted(tmp_path.iterdir()))
    assert [document.set_name for document in found] == ["unnamed", *["good", "unnamed", "unnamed"] * 2]
    assert not problems


def test_a_column_that_is_there_twice_is_a_problem(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for at, names in enumerate((["text", "text"], ["text", "meta", "meta"])):
        table = pa.table([pa.array(["x"])] * len(names), names=names)
        pq.write_table(table, tmp_path / f"{at}.parquet")
    found, problems = read(*sorted(tmp_path.iterdir()))
    assert [problem.what for problem in problems] == [
        "2 columns named 'text'; keep one",
        "2 columns named 'meta'; keep one",
    ]
    assert not found


def test_lines_without_end_are_left_out_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdf_dist.data.readers.LONGEST_LINE", 4 << 20)
    path = tmp_path / "x.jsonl.gz"
    good = b'{"text": "good"}\n'
    huge = bytes(100 << 20)
    for content, line in ((good + huge + b"\n" + good, 2), (huge + b"\n" + good + good, 1), (good + good + huge, 3)):
        path.write_bytes(gzip.compress(content, compresslevel=1))
        problems: list[Problem] = []
        tracemalloc.start()
        found = [document.text for document in documents([path], problems.append)]
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.stop()
        assert found == ["good", "good"]
        assert [(problem.line, "longer than" in problem.what) for problem in problems] == [(line, True)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_other_encodings_are_refused_in_one_line(encoding: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('{"text": "one"}\n{"text": "two"}\n'.encode(encoding))
    with pytest.raises(UserError, match=r"UTF-\d\d.*save it as UTF-8"):
        list(documents([tmp_path / name], lambda problem: None))


def test_a_pipe_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="is a pipe or a device"):
        check_inputs([tmp_path / "x.jsonl"])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: object, name: str) -> Iterator[bytes]:
        yield b'{"text": "a"}\n'
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(readers, "decompressed", broken)
    for name in ("x.jsonl", "x.txt"):
        (tmp_path / name).write_text('{"text": "a"}\n')
        with pytest.raises(OSError, match=f"Input/output error: .*{name}"):
            list(read_chunks(tmp_path / name))
