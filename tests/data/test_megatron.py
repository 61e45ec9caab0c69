from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.data.loader import open_mixture
from spdf_dist.data.megatron import MegatronDataset


@dataclass(frozen=True)
class Entry:
    path: str
    weight: float = 1.0


def write_megatron(prefix: Path, documents: list[list[int]], dtype: type) -> None:
    """Write a pair with megatron-core's own builder."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 400, rng.integers(1, 50)).tolist() + [0] for _ in range(60)]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_megatron_files_are_read_as_they_are(tmp_path: Path, documents: list[list[int]], dtype: type) -> None:
    prefix = tmp_path / "corpus.v1_text_document"
    write_megatron(prefix, documents, dtype)
    stream = [token for document in documents for token in document]
    for name in (str(prefix), f"{prefix}.bin", f"{prefix}.idx"):
        mixture = open_mixture([Entry(name)], 24, seed=3)
        assert mixture.num_sequences == (len(stream) - 1) // 24
        dataset = mixture.datasets[0]
        rows = dataset.read(np.arange(dataset.num_sequences))
        targets = rows[:, 1:].ravel().tolist()
        assert targets == stream[1 : 1 + len(targets)]
        assert rows[:, :-1].ravel().tolist() == stream[: len(targets)]
        epoch = mixture.batch(0, mixture.num_sequences)
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, rows.tolist()))
    assert mixture.tokenizer_digest is None
    assert mixture.vocab_size is None
    assert len(mixture.digest()) == 64


def test_ids_that_the_model_does_not_have(tmp_path: Path, documents: list[list[int]]) -> None:
    write_megatron(tmp_path / "c", documents, np.uint16)
    mixture = open_mixture([Entry(str(tmp_path / "c"))], 24, seed=3, vocab_size=300)
    with pytest.raises(UserError, match=r"holds token \d+, model.vocab_size is 300"):
        mixture.batch(0, mixture.num_sequences)
    open_mixture([Entry(str(tmp_path / "c"))], 24, seed=3, vocab_size=400).batch(0, mixture.num_sequences)


def test_damaged_pairs_are_named(tmp_path: Path, documents: list[list[int]]) -> None:
    prefix = tmp_path / "c"
    write_megatron(prefix, documents, np.uint16)
    tokens, index = tmp_path / "c.bin", tmp_path / "c.idx"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"c\.bin is damaged"):
        MegatronDataset(prefix, 24)
    tokens.unlink()
    with pytest.raises(UserError, match=r"c\.bin is missing"):
        open_mixture([Entry(str(prefix))], 24, 0)
    tokens.write_bytes(content)
    with pytest.raises(UserError, match="fewer than one sequence"):
        MegatronDataset(prefix, 10**6)
    whole = index.read_bytes()
    index.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"c\.idx is damaged"):
        MegatronDataset(prefix, 24)
    index.write_bytes(b"something else" + whole)
    with pytest.raises(UserError, match="not a Megatron index"):
        MegatronDataset(prefix, 24)
