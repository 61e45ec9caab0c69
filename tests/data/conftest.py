"""Tokenizers and inputs that the data tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from data_samples import story, write_jsonl

from spdf_dist.data.tokenizer_training import train_sentencepiece


@pytest.fixture(scope="session")
def sp_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small SentencePiece model."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train_sentencepiece([story(number) for number in range(200)], 400, path)
    return str(path)


@pytest.fixture(scope="session")
def gpt2_folder() -> str:
    """GPT-2's own vocabulary files."""
    data = os.environ.get("SPDF_DATA")
    if not data:
        pytest.skip("SPDF_DATA is not set: GPT-2's encoder.json and vocab.bpe are not at hand")
    return str(Path(data) / "gpt2_vocab")


@pytest.fixture
def three_files(tmp_path: Path) -> list[str]:
    """Three inputs of different sizes and formats."""
    folder = tmp_path / "in"
    folder.mkdir()
    first = write_jsonl(folder / "a.jsonl", [story(n) for n in range(30)], "Stories")
    second = folder / "b.txt"
    second.write_text("".join(story(n) for n in range(30, 45)), encoding="utf-8")
    third = write_jsonl(folder / "c.jsonl", [story(n) for n in range(45, 60)])
    return [str(first), str(second), str(third)]
