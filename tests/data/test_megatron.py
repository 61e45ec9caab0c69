import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.data.loader import open_mixture
from spdf_dist.data.megatron import MegatronDataset
from spdf_dist.data.verify import verify_dataset


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
    with pytest.raises(UserError, match=r"holds token \d+ .*, model.vocab_size is 300"):
        open_mixture([Entry(str(tmp_path / "c"))], 24, seed=3, vocab_size=300)
    mixture = open_mixture([Entry(str(tmp_path / "c"))], 24, seed=3, vocab_size=400)
    mixture.batch(0, mixture.num_sequences)


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


@pytest.fixture
def pair(tmp_path: Path, documents: list[list[int]]) -> Path:
    write_megatron(tmp_path / "c", documents * 40, np.uint16)
    return tmp_path / "c"


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def test_sums_find_a_flipped_bit_when_its_block_is_read(pair: Path) -> None:
    assert "c.sums written" in verify_dataset(str(pair)) and "are those of" in verify_dataset(str(pair))
    whole = MegatronDataset(pair, 16, 400)
    everything = np.arange(whole.num_sequences)
    expected = whole.read(everything).copy()
    flip(Path(f"{pair}.bin"), 2 * 16_384 + 5)
    data = MegatronDataset(pair, 16, 400)
    before = everything[everything < 2 * 16_384 // 2 // 16 - 1]
    assert np.array_equal(data.read(before), expected[before])
    with pytest.raises(UserError, match=r"c\.bin is damaged: the bytes from 32,768 on"):
        data.read(everything)
    with pytest.raises(UserError, match=r"c\.bin is damaged"):
        verify_dataset(str(pair))


@pytest.mark.parametrize("suffix", [".sums", ".idx"])
def test_every_flipped_bit_of_the_small_files_is_found(suffix: str, pair: Path) -> None:
    verify_dataset(str(pair))
    path = Path(f"{pair}{suffix}")
    content = path.read_bytes()
    for bit in Random(3).sample(range(8 * len(content)), 100):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(UserError):
            MegatronDataset(pair, 16, 400)
    path.write_bytes(content[:-7])
    with pytest.raises(UserError):
        MegatronDataset(pair, 16, 400)


def test_sums_of_other_tokens_are_refused(pair: Path, documents: list[list[int]]) -> None:
    verify_dataset(str(pair))
    write_megatron(pair, documents * 39, np.uint16)
    with pytest.raises(UserError, match=r"of another c\.bin"):
        MegatronDataset(pair, 16)


def test_an_id_that_the_model_lacks_is_named_with_its_place_at_the_start(pair: Path) -> None:
    tokens = np.memmap(f"{pair}.bin", np.uint16, "r+")
    tokens[12_345] = 400
    tokens.flush()
    with pytest.raises(UserError, match=r"token 400 \(at 12,345 of [\d,]+\), model\.vocab_size is 400"):
        MegatronDataset(pair, 16, 400)


def test_an_id_far_behind_in_a_large_file_ends_the_run_early(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdf_dist.data.megatron.SCANNED_BYTES", 1000)
    tokens = np.memmap(f"{pair}.bin", np.uint16, "r+")
    tokens[-30] = 400
    tokens.flush()
    data = MegatronDataset(pair, 16, 400)
    end = time.monotonic() + 30
    with pytest.raises(UserError, match="holds token 400"):
        while time.monotonic() < end:
            data.read(np.arange(3))


def test_the_digest_changes_with_the_tokens(pair: Path) -> None:
    before = MegatronDataset(pair, 16).digest()
    assert MegatronDataset(pair, 16).digest() == before
    tokens = np.memmap(f"{pair}.bin", np.uint16, "r+")
    tokens[:] = tokens[::-1].copy()
    tokens.flush()
    assert MegatronDataset(pair, 16).digest() != before
