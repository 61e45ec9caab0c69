"""Fixtures of several packages: a tiny tokenizer, packed text and a config."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

# A shell starts background jobs with SIGINT ignored. Children inherit that, and would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise under nohup

TEXT = (
    "The {n}th house on the street has {m} windows and a red door. People walk past it every morning, "
    "and some of them count the windows. Nobody agrees on the number: some say {m}, others say {n}.\n"
)


@dataclass(frozen=True)
class TinyData:
    """Packed folders of 32-token sequences, and the tokenizer that made them."""

    tokenizer: Path
    train: Path
    validation: Path
    vocab_size: int


@pytest.fixture(scope="session")
def spdf_data() -> Path:
    """The folder of real data. Without it, the test is skipped."""
    folder = os.environ.get("SPDF_DATA")
    if not folder:
        pytest.skip("SPDF_DATA is not set: no official data to compare with")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    from spdf_dist.data.pack import pack
    from spdf_dist.data.tokenizer_training import train_sentencepiece

    folder = tmp_path_factory.mktemp("tiny")
    texts = [TEXT.format(n=n, m=n * n % 97) for n in range(400)]
    for name, part in (("train", texts[:360]), ("validation", texts[360:])):
        lines = [json.dumps({"text": text, "meta": {"pile_set_name": "Houses"}}) for text in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    train_sentencepiece(texts, 300, folder / "sp.model")
    for name in ("train", "validation"):
        pack([folder / f"{name}.jsonl"], folder / "sp.model", folder / f"packed_{name}", 32, workers=1)
    return TinyData(folder / "sp.model", folder / "packed_train", folder / "packed_validation", 300)


@pytest.fixture(scope="session")
def tiny_config(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training config that runs for seconds: 12 steps, checkpoints every 5, validation every 6."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        f"""
device: cpu
model: {{num_layers: 2, hidden_size: 32, num_attention_heads: 4, seq_length: 32, vocab_size: 300, dropout: 0.1}}
sparsity: {{level: 0.75, execution: masked}}
training: {{train_tokens: 6144, global_batch_size: 16, micro_batch_size: 4, lr: 5e-3, warmup_tokens: 1024}}
data: {{train: {tiny_data.train}, validation: {tiny_data.validation}}}
checkpoint: {{interval: 5, keep: 9}}
validation: {{interval: 6, batches: 1}}
"""
    )
    return path
