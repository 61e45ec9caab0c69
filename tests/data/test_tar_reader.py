"""Shards of webdataset's writer, read by our reader."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset

from spdf_dist.config.errors import UserError
from spdf_dist.data.readers import Document, Problem, check_inputs, documents


def write(path: Path, *samples: dict[str, str | bytes]) -> Path:
    with webdataset.TarWriter(str(path), encoder=False) as shard:
        for number, sample in enumerate(samples):
            encoded = {
                name: value if isinstance(value, bytes) else str(value).encode() for name, value in sample.items()
            }
            shard.write({"__key__": f"{number:05d}", **encoded})
    return path


def read(*paths: Path) -> tuple[list[Document], list[Problem]]:
    problems: list[Problem] = []
    return list(documents(check_inputs(paths), problems.append)), problems


def test_texts_and_objects_are_documents_in_the_order_of_the_shard(tmp_path: Path) -> None:
    shard = write(
        tmp_path / "a.tar",
        {"txt": "one\ntwo", "json": json.dumps({"meta": {"pile_set_name": "Books"}})},
        {"json": json.dumps({"text": "three", "meta": {"pile_set_name": "Web"}}, indent=1)},
        {"json": json.dumps({"text": "four"}), "cls": "7"},
        {"txt": b"\xef\xbb\xbffive"},
    )
    found, problems = read(shard)
    assert [(d.text, d.set_name) for d in found] == [
        ("one\ntwo", "Books"),
        ("three", "Web"),
        ("four", "unnamed"),
        ("five", "unnamed"),
    ]
    assert problems == []


def test_many_samples_give_the_same_documents_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdf_dist.data.tar_reader.BLOCK_BYTES", 50)
    texts = [f"text {number} " * (number % 7 + 1) for number in range(100)]
    shard = write(tmp_path / "a.tar", *({"txt": text} for text in texts))
    found, problems = read(shard)
    assert [d.text for d in found] == texts and not problems


def test_what_cannot_be_used_is_named_with_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdf_dist.data.tar_reader.LONGEST_LINE", 100)
    shard = write(
        tmp_path / "a.tar",
        {"txt": "one"},
        {"jpg": b"\xff\xd8"},
        {"txt": b"\xff\xfea\x00"},
        {"txt": b"ok \xff"},
        {"json": "[1]"},
        {"txt": "x" * 101},
        {"txt": "seven"},
    )
    found, problems = read(shard)
    assert [d.text for d in found] == ["one", "seven"]
    assert [(p.line, p.what) for p in problems] == [
        (2, "the sample '00001' has neither a .txt nor a .json member"),
        (3, "the sample '00002' is UTF-16, not UTF-8"),
        (4, "invalid UTF-8 at byte 3 of the line"),
        (5, "not a JSON object"),
        (6, "the sample '00005' is longer than 0 MiB"),
    ]


@pytest.mark.parametrize(("at", "texts"), [(1, ["one"]), (2, ["one"]), (512, ["one"]), (700, ["one"])])
def test_a_shard_that_is_cut_keeps_what_came_before(tmp_path: Path, at: int, texts: list[str]) -> None:
    """Truncated at this many bytes after the start of the second content: inside it, at its end, in the next header."""
    shard = write(tmp_path / "a.tar", {"txt": "one"}, {"txt": "two"}, {"txt": "three"})
    with tarfile.open(shard) as tar:
        second = tar.getmembers()[1].offset_data
    shard.write_bytes(shard.read_bytes()[: second + at])
    found, problems = read(shard)
    assert [d.text for d in found] == texts
    assert len(problems) == 1 and problems[0].line == 2 and "sample '00001' is lost" in problems[0].what


def test_no_tar_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    write(tmp_path / "b.tar")
    found, problems = read(tmp_path / "a.tar", tmp_path / "b.tar")
    assert found == [] and ["damaged tar" in p.what or "no samples" in p.what for p in problems] == [True, True]


def test_patterns_stand_for_the_files_that_they_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (2, 0, 1):
        write(tmp_path / f"part-{number}.tar", {"txt": str(number)})
    for pattern in ("part-*.tar", "part-{0..2}.tar", "part-{0,[12]}.tar"):
        assert [path.name for path in check_inputs([tmp_path / pattern])] == [f"part-{n}.tar" for n in range(3)]
    for pattern, words in (
        ("x-*.tar", "matches no file"),
        ("part-{0..3}.tar", "part-3.tar does not exist"),
        ("part-{0..9999999}.tar", "more than 100000 names"),
        ("part-{0.tar", "does not exist|[Bb]race"),
    ):
        with pytest.raises(UserError, match=words):
            check_inputs([tmp_path / pattern])
    for url in ("https://host/a.tar", "pipe:curl a.tar", "s3://bucket/a.tar"):
        with pytest.raises(UserError, match="download it first"):
            check_inputs([url])


def test_members_that_would_be_lost_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, content in (("a.txt", b"one"), ("a.txt", b"two"), ("b.txt", b"three")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("c.txt")
        link.type, link.linkname = tarfile.LNKTYPE, "a.txt"
        shard.addfile(link)
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        shard.addfile(folder)
    found, problems = read(tmp_path / "a.tar")
    assert [document.text for document in found] == ["one", "three"]
    assert [problem.what for problem in problems] == [
        "the sample 'a' has more than one .txt member; the first is used",
        "'c.txt' is a hard link and is left out",
    ]
