"""Data and small checkpoints for the tests of generation, perplexity and metrics."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_gpt import random_weights

from spdf_dist.checkpoint.write import single_writer, whole
from spdf_dist.config.schema import ModelConfig
from spdf_dist.data.tokenizer_training import train_sentencepiece

WORDS = "name Type pub restaurant area riverside food French Indian price cheap The Mill Aromi serves is a near it in"

MODEL = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=64, vocab_size=300)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    texts = [f"{first} {second} : {third} | " for first in WORDS.split() for second in "ab" for third in WORDS.split()]
    train_sentencepiece(texts, MODEL.vocab_size, path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A checkpoint of a random model, with its tokenizer."""
    folder = tmp_path_factory.mktemp("run") / "step_3"
    weights = random_weights(MODEL, seed=11, scale=0.2)
    single_writer(folder, 3).write(
        (("model", whole(name, tensor), tensor) for name, tensor in weights.items()),
        masks=None,
        config_yaml="",
        tokenizer=tokenizer_file,
        manifest={"kind": "pretrain", "model": asdict(MODEL), "sparsity": None, "consumed_tokens": 0},
    )
    return folder


@pytest.fixture
def e2e_csv(tmp_path: Path) -> Path:
    path = tmp_path / "e2e.csv"
    path.write_text(
        'mr,ref\n"name[The Mill], eatType[pub]","The Mill is a pub."\n"name[The Mill], eatType[pub]",A pub: The Mill.\n'
        '"name[Aromi], area[riverside], priceRange[less than £20]",Aromi isn\'t cheap.\n',
        encoding="utf-8",
    )
    return path
