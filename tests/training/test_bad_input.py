"""Wrong input to `spdf pretrain`: one clear line, exit code 2, nothing written or lost."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from spdf_command import run_spdf

from spdf_dist.data.tokenizer_training import train_sentencepiece


def refuse(tmp_path: Path, *arguments: object, **environment: str) -> str:
    """Run the command, check that it refuses in one line and writes no run, and return the line."""
    run = tmp_path / "run"
    before = sorted(run.rglob("*")) if run.exists() else None
    done = run_spdf("pretrain", *arguments, f"run_dir={run}", **environment)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert (sorted(run.rglob("*")) if run.exists() else None) == before
    return lines[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.lrr=1", "'lr'"),
        ("sparsity.level=1.0", "[0, 1)"),
        ("sparsity.level=-0.1", "[0, 1)"),
        ("parallel.tensor=3", "4 attention heads"),
        ("training.precision=bf16 parallel.zero_stage=0", "bf16 needs stage 1"),
        ("training.warmup_tokens=6144", "must be less than the run's"),
        ("training.micro_batch_size=3 parallel.data=1", "not divisible"),
        ("sparsity.pattern=blocks", "block:B or N:M"),
        ("sparsity.pattern=block:7", "does not divide into blocks of 7"),
        ("deepspeed.gradient_clipping=0.5", "conflicts with 1.0"),
        ("--json", "--json goes with --dry-run"),
        ("data.train=nowhere", "nowhere"),
        ("model.vocab_size=200", "vocab"),
        ("model.seq_length=16", "32"),
    ],
)
def test_a_wrong_key_or_value_is_named(override, expected, tiny_config, tmp_path):
    assert expected in refuse(tmp_path, tiny_config, *override.split())


def test_world_size_that_does_not_match(tiny_config, tmp_path):
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    line = refuse(tmp_path, tiny_config, "parallel.tensor=2", **ranks)
    assert "world size 1" in line and "parallel.tensor 2" in line


def test_missing_and_damaged_shards_and_another_tokenizer(tiny_config, tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data.train, data)
    shard = next(data.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    assert shard.name in refuse(tmp_path, tiny_config, f"data.train={data}")
    shard.unlink()
    assert shard.name in refuse(tmp_path, tiny_config, f"data.train={data}")
    other = tmp_path / "other.model"
    train_sentencepiece(["quite another text, with other words in it, again and again"] * 9, 290, other)
    assert "not the tokenizer" in refuse(tmp_path, tiny_config, f"data.tokenizer={other}")


def test_a_tokenizer_for_megatron_data_is_looked_at_before_the_run(tiny_config, tiny_data, tmp_path):
    stream = np.arange(3000, dtype="<u2") % 300
    (tmp_path / "text.bin").write_bytes(stream.tobytes())
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 1, 2)
    index = np.array([len(stream)], "<i4").tobytes() + np.array([0, 0, 1], "<i8").tobytes()
    (tmp_path / "text.idx").write_bytes(header + index)
    other = tmp_path / "other.model"
    train_sentencepiece(["quite another text, with other words in it, again and again"] * 9, 310, other)
    megatron = (tiny_config, f"data.train={tmp_path / 'text'}", "data.validation=[]")
    assert "nowhere.model does not exist" in refuse(tmp_path, *megatron, "data.tokenizer=nowhere.model")
    assert "has 310 ids" in refuse(tmp_path, *megatron, f"data.tokenizer={other}")


def test_a_folder_that_holds_another_run_is_left_alone(tiny_config, tmp_path):
    run = tmp_path / "run"
    assert (
        run_spdf(
            "pretrain", tiny_config, f"run_dir={run}", "training.train_tokens=512", "training.warmup_tokens=0"
        ).returncode
        == 0
    )
    line = refuse(tmp_path, tiny_config, "training.train_tokens=512", "training.warmup_tokens=0", "training.lr=1e-3")
    assert "training.lr: 0.005 -> 0.001" in line
    (run / "checkpoints" / "step_1" / "masks.safetensors").unlink()
    assert "masks" in refuse(tmp_path, tiny_config, "training.train_tokens=512", "training.warmup_tokens=0")


def test_a_non_finite_loss_stops_before_the_update(tiny_config, tmp_path):
    run = tmp_path / "run"
    done = run_spdf(
        "pretrain",
        tiny_config,
        f"run_dir={run}",
        "training.lr=1e30",
        "training.warmup_tokens=0",
        "checkpoint.interval=1",
    )
    assert done.returncode == 3, done.stderr
    assert "not made" in done.stderr and "Traceback" not in done.stderr
    assert "nan" not in (run / "metrics.jsonl").read_text().lower()


def test_dry_run_starts_nothing(tiny_config, tmp_path):
    done = run_spdf("pretrain", tiny_config, f"run_dir={tmp_path / 'run'}", "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("parameters", "steps", "memory"):
        assert word in done.stdout.lower()
    assert not (tmp_path / "run").exists()
