import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
from data_samples import story, write_jsonl

from spdf_dist.config.errors import UserError
from spdf_dist.data.bench import bench, bench_tokenizer
from spdf_dist.data.loader import Mixture, PackedDataset, open_mixture
from spdf_dist.data.pack import pack


@dataclass(frozen=True)
class Entry:
    path: str
    weight: float = 1.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, sp_model: str) -> list[str]:
    """Two packed folders of several shards."""
    base = tmp_path_factory.mktemp("packed")
    made = []
    for at, (first, last) in enumerate([(0, 40), (40, 60)]):
        source = write_jsonl(base / f"{at}.jsonl", [story(n) for n in range(first, last)])
        pack([str(source)], sp_model, str(base / f"d{at}"), 32, workers=1, sequences_per_shard=17)
        made.append(str(base / f"d{at}"))
    return made


def test_an_epoch_has_each_sequence_once_from_wherever_it_resumes(folders: list[str]) -> None:
    mixture = open_mixture([Entry(folders[0])], 32, seed=5)
    size = mixture.num_sequences
    assert size > 60
    everything = PackedDataset(folders[0]).read(np.arange(size))
    for epoch in range(2):
        rows = mixture.batch(epoch * size, size)
        assert rows.dtype == np.int64
        assert rows.shape == (size, 33)
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, everything.tolist()))
    for resumed_at in (1, size - 1, size, size + 7):
        again = open_mixture([Entry(folders[0])], 32, seed=5)
        before = mixture.batch(0, resumed_at)
        assert np.array_equal(np.concatenate([before, again.batch(resumed_at, 9)]), mixture.batch(0, resumed_at + 9))


def test_the_order_is_independent_of_batches_and_ranks(folders: list[str]) -> None:
    entries = [Entry(folders[0], 0.7), Entry(folders[1], 0.3)]
    reference = open_mixture(entries, 32, seed=9).batch(0, 96)
    for batch_size in (1, 7, 32):
        mixture = open_mixture(entries, 32, seed=9)
        parts = [mixture.batch(start, min(batch_size, 96 - start)) for start in range(0, 96, batch_size)]
        assert np.array_equal(np.concatenate(parts), reference)
    by_rank = np.empty_like(reference)
    for rank in range(4):
        own = np.arange(rank, 96, 4)
        by_rank[own] = open_mixture(entries, 32, seed=9).read(own)
    assert np.array_equal(by_rank, reference)
    assert not np.array_equal(open_mixture(entries, 32, seed=10).batch(0, 96), reference)


def test_a_mixture_gives_each_data_set_its_share(folders: list[str]) -> None:
    mixture = open_mixture([Entry(folders[0], 1), Entry(folders[1], 3)], 32, seed=0)
    sizes = [dataset.num_sequences for dataset in mixture.datasets]
    assert mixture.num_sequences == sum(sizes)
    count = 4 * sizes[1]
    datasets, sequences = mixture.locate(np.arange(count))
    assert (datasets == 0).sum() == count // 4
    assert np.array_equal(np.bincount(sequences[datasets == 1], minlength=sizes[1]), np.full(sizes[1], 3))
    rows = mixture.batch(0, 50)
    for sample in range(50):
        expected = mixture.datasets[datasets[sample]].read(sequences[sample : sample + 1])[0]
        assert np.array_equal(rows[sample], expected)


def test_the_digest_tells_what_decides_the_samples(folders: list[str]) -> None:
    def digest(*entries: Entry, seed: int = 0) -> str:
        return open_mixture(entries, 32, seed).digest()

    same = digest(Entry(folders[0], 1), Entry(folders[1], 2))
    assert digest(Entry(folders[0], 0.5), Entry(folders[1], 1)) == same
    others = [
        digest(Entry(folders[0], 1), Entry(folders[1], 2), seed=1),
        digest(Entry(folders[0], 1), Entry(folders[1], 3)),
        digest(Entry(folders[1], 1), Entry(folders[0], 2)),
        digest(Entry(folders[0])),
    ]
    assert len({same, *others}) == 5


@pytest.fixture
def damaged(tmp_path: Path, sp_model: str) -> Path:
    """A packed folder to damage."""
    source = write_jsonl(tmp_path / "a.jsonl", [story(n) for n in range(30)])
    pack([str(source)], sp_model, str(tmp_path / "d"), 32, workers=1, sequences_per_shard=17)
    return tmp_path / "d"


def test_a_missing_short_or_changed_shard_is_named(damaged: Path) -> None:
    shard = damaged / "shard-000001.tar"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing"):
        open_mixture([Entry(str(damaged))], 32, 0)
    shard.write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"shard-000001\.tar is damaged: \d+ bytes"):
        open_mixture([Entry(str(damaged))], 32, 0)
    shard.write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:])
    with pytest.raises(UserError, match=r"shard-000001\.tar is damaged: its sha256"):
        open_mixture([Entry(str(damaged))], 32, 0)
    shard.write_bytes(content)
    open_mixture([Entry(str(damaged))], 32, 0)


def test_large_data_are_verified_on_demand(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdf_dist.data.loader.VERIFIED_BYTES", 1000)
    shard = damaged / "shard-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:660] + bytes([content[660] ^ 1]) + content[661:])
    mixture = open_mixture([Entry(str(damaged))], 32, 0)
    with pytest.raises(UserError, match=r"shard-000000\.tar is damaged"):
        mixture.verify()
    with pytest.raises(UserError, match=r"shard-000000\.tar is damaged: sequence 0 does not have its digest"):
        mixture.batch(0, mixture.num_sequences)


@pytest.mark.parametrize("place", ["header of the array", "ids", "digest"])
def test_a_flipped_bit_is_found_when_its_sequence_is_read(
    place: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spdf_dist.data.loader.VERIFIED_BYTES", 1000)
    rule = json.loads((damaged / "index.json").read_text())["members"]
    offset = {"header of the array": 520, "ids": rule["data_offset"] + rule["data_bytes"] - 1, "digest": 300}[place]
    shard = damaged / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[3 * rule["stride"] + offset] ^= 4
    shard.write_bytes(content)
    data = PackedDataset(damaged)
    hurt = json.loads((damaged / "index.json").read_text())["shards"][0]["sequences"] + 3
    data.read(np.array([number for number in range(data.num_sequences) if number != hurt]))
    with pytest.raises(UserError, match=rf"shard-000001\.tar is damaged: sequence {hurt} "):
        data.read(np.array([hurt]))


def test_large_data_of_an_older_version_are_read_with_a_warning(
    damaged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = json.loads((damaged / "index.json").read_text())
    del index["digest"], index["members"]["digest"]
    (damaged / "index.json").write_text(json.dumps(index))
    PackedDataset(damaged)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("spdf_dist.data.loader.VERIFIED_BYTES", 1000)
    PackedDataset(damaged).read(np.arange(3))
    assert "packed before sequences had digests" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"sequences": float("inf")},
        {"seq_len": float("nan")},
        {"seq_len": 10**400},
        {"tokens": None},
        {"dtype": "O"},
        {"dtype": 7},
        {"dtype": "float64"},
        {"tokenizer": {"digest": "x", "vocab_size": 70_000, "eod_id": 0}},
        {"tokenizer": {"digest": "x", "vocab_size": 300, "eod_id": 300}},
        {"tokenizer": []},
        {"shards": {}},
        {"shards": [3]},
        {"members": "x"},
        {"members": []},
    ],
)
def test_an_index_with_values_that_cannot_be_is_refused(change: dict, damaged: Path) -> None:
    index = json.loads((damaged / "index.json").read_text())
    del index["digest"]
    (damaged / "index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        PackedDataset(damaged)


def test_every_flipped_bit_and_missing_key_of_an_index_is_found(damaged: Path) -> None:
    path = damaged / "index.json"
    content = path.read_bytes()
    for bit in Random(20).sample(range(8 * len(content)), 200):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"index\.json"):
            PackedDataset(damaged)
    index = json.loads(content)
    del index["digest"]
    for key in ("seq_len", "dtype", "sequences", "tokens", "tokenizer", "members", "shards"):
        path.write_text(json.dumps({name: value for name, value in index.items() if name != key}))
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            PackedDataset(damaged)


def test_an_index_that_is_damaged_or_of_another_version(damaged: Path) -> None:
    path = damaged / "index.json"
    index = json.loads(path.read_text())
    del index["digest"]  # as in an older index
    for change, words in [
        ({"schema_version": 2}, "schema version 1"),
        ({"sequences": 1}, "do not add up"),
        ({"shards": [{"file": "x"}]}, "index.json is damaged"),
        ({"members": {**index["members"], "stride": 512}}, "do not lie as this version"),
    ]:
        path.write_text(json.dumps({**index, **change}))
        with pytest.raises(UserError, match=words):
            open_mixture([Entry(str(damaged))], 32, 0)
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        open_mixture([Entry(str(damaged))], 32, 0)


def test_data_that_do_not_fit_the_model(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sequences of 32 tokens.*--seq-len 64"):
        open_mixture([Entry(folders[0])], 64, 0)
    with pytest.raises(UserError, match=r"tokenizer of 400 ids, model\.vocab_size is 256"):
        open_mixture([Entry(folders[0])], 32, 0, vocab_size=256)
    with pytest.raises(UserError, match="does not exist"):
        open_mixture([Entry(str(tmp_path / "none"))], 32, 0)
    with pytest.raises(UserError, match="holds no packed data"):
        open_mixture([Entry(str(tmp_path))], 32, 0)
    with pytest.raises(UserError, match="weights"):
        open_mixture([Entry(folders[0], 0.0)], 32, 0)
    with pytest.raises(UserError, match="empty"):
        open_mixture([], 32, 0)


def test_data_of_two_tokenizers_do_not_mix(folders: list[str], tmp_path: Path, gpt2_folder: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [story(n) for n in range(10)])
    pack([str(source)], gpt2_folder, str(tmp_path / "gpt2"), 32, workers=1)
    with pytest.raises(UserError, match="different tokenizers"):
        open_mixture([Entry(folders[0]), Entry(str(tmp_path / "gpt2"))], 32, 0)


def test_what_a_mixture_tells(folders: list[str]) -> None:
    mixture: Mixture = open_mixture([Entry(folders[0])], 32, 0, vocab_size=400)
    packed = PackedDataset(folders[0])
    assert mixture.tokenizer_digest == packed.tokenizer_digest == packed.index["tokenizer"]["digest"]
    assert mixture.vocab_size == 400
    assert mixture.seq_length == 32


def test_the_benchmarks_measure(folders: list[str], sp_model: str, three_files: list[str]) -> None:
    result = bench(folders[0], batch_size=8, seconds=0.05)
    assert result["batches"] > 0
    assert result["tokens_per_s"] == pytest.approx(result["batches"] * 8 * 32 / result["seconds"])
    tokenizing = bench_tokenizer(sp_model, three_files)
    assert tokenizing["text_bytes"] > 1000
    assert tokenizing["mb_per_s"] > 0
