"""Files of hypotheses and references, and mistakes in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spdf_dist.cli.main import main
from spdf_dist.config.errors import UserError
from spdf_dist.scoring.texts import read_e2e, read_parallel


def write(folder: Path, **texts: str) -> list[Path]:
    paths = []
    for name, text in texts.items():
        path = folder / name.replace("__", ".")
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_e2e_references_by_blank_lines(tmp_path: Path, end: str) -> None:
    hyps, refs = write(tmp_path, hyps="one\n two \n", refs=f"a\nb\n\nc{end}")
    assert read_e2e(hyps, refs) == (["one", "two"], [["a", "b"], ["c"]])


def test_e2e_single_references_and_empty_hypotheses(tmp_path: Path) -> None:
    hyps, refs = write(tmp_path, hyps="\none\n\n", refs="a\nb\nc\n")
    assert read_e2e(hyps, refs) == (["", "one", ""], [["a"], ["b"], ["c"]])


def test_e2e_references_from_the_official_csv(tmp_path: Path) -> None:
    hyps, refs = write(
        tmp_path,
        hyps="x\ny\nz",
        refs__csv='"mr","ref"\n"name[A], b[c]","Â£20, ""cheap"""\n"name[A], b[c]",q\nm,r\nname[A],s\n',
    )
    assert read_e2e(hyps, refs)[1] == [['£20, "cheap"', "q"], ["r"], ["s"]]


def test_parallel_files_with_and_without_a_last_newline(tmp_path: Path) -> None:
    hyps, first, second = write(tmp_path, hyps="h1\nh2\n", ref0="a\nb\n", ref1="c\n\n")
    assert read_parallel(hyps, [first, second]) == (["h1", "h2"], [["a", "c"], ["b", ""]])
    # If the other files have no newline at the end, a final newline begins an empty last line.
    hyps, first, second = write(tmp_path, hyps="h1\nh2", ref0="a\nb", ref1="c\n")
    assert read_parallel(hyps, [first, second]) == (["h1", "h2"], [["a", "c"], ["b", ""]])


def test_lines_of_a_csv_may_end_in_any_way(tmp_path: Path) -> None:
    hyps, refs = write(tmp_path, hyps="x\ny\n", refs__csv='mr,ref\ra,one \r\nb,"two\nlines"\r\n')
    assert read_e2e(hyps, refs)[1] == [["one"], ["two\nlines"]]


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        ("e2e", {"hyps": "a\n", "refs": "a\n\nb\n"}, "1 line, but"),
        ("e2e", {"hyps": "a\nb\n", "refs": "a\n\n\nb\n"}, "line 3: a second blank line"),
        ("e2e", {"hyps": "a\n", "refs": ""}, "is empty"),
        ("e2e", {"hyps": "a\n", "refs__csv": "mr,text\na,b\n"}, "no column 'ref'"),
        ("e2e", {"hyps": "a\n", "refs": "a\n", "more": "b\n"}, "one file of references, got 2"),
        ("e2e", {"hyps": "a\n", "refs__csv": "\n\n"}, "holds only blank lines"),
        ("e2e", {"hyps": "a\n", "refs__csv": f'mr,ref\na,"b\n{"c,d" * 50000}\n'}, "row 2 is not CSV"),
        ("e2e", {"hyps": "a\n", "refs__csv": 'mr,ref\na,b\na,"b"c\n'}, "row 3 is not CSV"),
        ("webnlg", {"hyps": "a", "refs": "a\nb\n"}, "has 1 line, but"),
        ("webnlg", {"hyps": "a\n", "refs": "a\nb\n"}, "has 1 line, but"),
        ("webnlg", {"hyps": "a\n", "refs": "a\nb\nc"}, "has 1 line, but"),
        ("webnlg", {"hyps": "a\n", "ref0": "a\nb\n", "ref1": "a\nb\nc\n"}, "has 1 line, but"),
        ("webnlg", {"hyps": "a\nb\nc\n", "refs": "a\nb\n"}, "has 3 lines, but"),
        ("webnlgg", {"hyps": "a\n", "refs": "a\n"}, "did you mean 'webnlg'?"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, task: str, texts: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hyps, *refs = (str(path) for path in write(tmp_path, **texts))
    assert main(["evaluate", "--task", task, "--hypotheses", hyps, "--references", *refs, "--json"]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out


def test_pipes_devices_and_inputs_without_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "refs.txt").write_text("a\n\nb\n")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="is a pipe or a device; write its content to a file first"):
            read_e2e(path, tmp_path / "refs.txt")
    ours, theirs = os.pipe()
    os.write(theirs, b"x\ny\n")
    os.close(theirs)
    assert read_e2e(Path(f"/proc/self/fd/{ours}"), tmp_path / "refs.txt")[0] == ["x", "y"]  # as a shell's <(...)
    os.close(ours)
    (tmp_path / "refs.csv").write_text("mr,ref\na[1],x\na[2], \n")
    (tmp_path / "hyps").write_text("x\ny\n")
    with pytest.raises(UserError, match=r"refs\.csv: input 2 has no reference"):
        read_e2e(tmp_path / "hyps", tmp_path / "refs.csv")
    for number in range(2):
        (tmp_path / f"r{number}").write_text("x\n\n")
    with pytest.raises(UserError, match="r0, line 2: no file has a reference of this input"):
        read_parallel(tmp_path / "hyps", [tmp_path / "r0", tmp_path / "r1"])
    monkeypatch.setattr("spdf_dist.scoring.texts.LARGEST_FILE", 3)
    with pytest.raises(UserError, match="holds more than 0 MiB"):
        read_e2e(tmp_path / "hyps", tmp_path / "refs.txt")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    (hyps,) = write(tmp_path, hyps="a\n")
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_e2e(hyps, tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"latin is not UTF-8 \(byte 3\)"):
        read_parallel(tmp_path / "latin", [hyps])


@pytest.mark.parametrize(
    ("name", "references", "message"),
    [
        ("refs.txt", b"a\rb\r", "carriage return is inside line 1"),
        ("refs.txt", b"a\n\nb\0\n", "zero byte in line 3"),
        ("refs.txt", "a\n\nb\n".encode("utf-16-le"), "zero byte"),
        ("refs.txt", b'"mr","ref"\nname[A],a\n', "is E2E's CSV"),
        ("refs.csv", b"mr,ref,ref\nname[A],a,b\n", "2 columns named 'ref'"),
    ],
)
def test_files_that_would_be_read_otherwise_than_meant_are_refused(
    tmp_path: Path, name: str, references: bytes, message: str
) -> None:
    (tmp_path / "hyps").write_text("x\ny\n")
    (tmp_path / name).write_bytes(references)
    with pytest.raises(UserError, match=message):
        read_e2e(tmp_path / "hyps", tmp_path / name)
    (tmp_path / "hyps").write_text("x\ry\r")
    with pytest.raises(UserError):
        read_parallel(tmp_path / "hyps", [tmp_path / name])


def test_references_with_semicolons(tmp_path: Path) -> None:
    hyps, refs = write(tmp_path, hyps="x\n", refs__csv='mr;ref\n"name[A], b[c]";"one; two"\n')
    assert read_e2e(hyps, refs)[1] == [["one; two"]]
