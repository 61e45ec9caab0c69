"""How often a training step reads a number from the device, where the host waits on a GPU."""

from __future__ import annotations

import collections
import traceback
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spdf_dist.base.rank_variables import ALONE
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.bench import build_engine, random_batch
from spdf_dist.training.setup import start

READ = "aten._local_scalar_dense.default"
MODEL = (
    "model.num_layers=3", "model.hidden_size=64", "model.num_attention_heads=2", "model.seq_length=16",
    "model.vocab_size=100", "training.global_batch_size=3", "training.micro_batch_size=1", "training.warmup_tokens=0",
)  # fmt: skip


class Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value, by the file that reads, or DeepSpeed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def count(self) -> None:
        files = [frame.filename for frame in reversed(traceback.extract_stack()[:-2])]
        package = next(file for file in files if "/torch/" not in file and file != __file__)
        self.found["deepspeed" if "deepspeed" in package else package.rsplit("/", 1)[-1]] += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function) == READ:
            self.count()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "stage", "own", "of_deepspeed"),
    [("fp32", 0, 2, 0), ("bf16", 1, 2, 2)],  # DeepSpeed checks the norm, and compares it with the limit
)
def test_a_step_reads_the_loss_and_the_norm_and_nothing_per_layer_or_micro_batch(
    precision: str, stage: int, own: int, of_deepspeed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("device=cpu", f"training.precision={precision}", f"parallel.zero_stage={stage}")
    config = load_config(PretrainConfig, "gpt2_small", [*MODEL, *settings])
    groups = start(config, ALONE)
    engine, batch = build_engine(config, groups, "dense"), random_batch(config, groups)
    engine.step(batch, 48, 1e-3)
    reads = Reads()
    tolist = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        reads.count()
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    with reads:
        result = engine.step(batch, 48, 1e-3)
    assert result.loss > 0 and result.grad_norm > 0
    assert 2 <= sum(reads.found.values()) - reads.found["deepspeed"] <= own, reads.found
    assert reads.found["deepspeed"] <= of_deepspeed, reads.found
