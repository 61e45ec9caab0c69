import json
from pathlib import Path

import pytest
import zstandard

from spdf_dist.config.errors import UserError
from spdf_dist.data.python_text import write_python_text


def read(path: Path) -> list[dict]:
    text = zstandard.open(path, "rt", encoding="utf-8").read() if path.suffix == ".zst" else path.read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_text_is_the_same_each_time_and_split_by_module(tmp_path: Path) -> None:
    train, validation = tmp_path / "train.jsonl.zst", tmp_path / "val.jsonl"
    first = write_python_text(str(train), str(validation), max_mb=3)
    content = train.read_bytes(), validation.read_bytes()
    assert write_python_text(str(train), str(validation), max_mb=3) == first
    assert (train.read_bytes(), validation.read_bytes()) == content
    documents, held_out = read(train), read(validation)
    assert [len(documents), len(held_out)] == [count for _, count, _ in first]
    size = sum(len(d["text"].encode()) for d in documents + held_out)
    assert size == sum(size for _, _, size in first)
    assert 3e6 <= size < 4e6
    assert {d["meta"]["pile_set_name"] for d in documents} == {"PythonSource", "PythonDocstrings", "PythonTopics"}
    assert not {d["meta"]["file"] for d in documents} & {d["meta"]["file"] for d in held_out}
    assert len(held_out) > 0
    assert not [d for d in documents if "site-packages" in d["meta"]["file"] or "/test" in d["meta"]["file"]]


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("precious")
    with pytest.raises(UserError, match="other content"):
        write_python_text(str(mine), max_mb=0.1)
    assert mine.read_text() == "precious"
    with pytest.raises(UserError, match="must end in"):
        write_python_text(str(tmp_path / "x.txt"))
    with pytest.raises(UserError, match="are both"):
        write_python_text(str(tmp_path / "x.jsonl"), str(tmp_path / "x.jsonl"))
    for size in (float("nan"), -1.0, 0.0, float("inf")):
        with pytest.raises(UserError, match="--max-mb"):
            write_python_text(str(tmp_path / "x.jsonl"), max_mb=size)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]
