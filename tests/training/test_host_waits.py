"""What costs a step on a GPU its time on the host: reads from the device (one), and operations per parameter."""

from __future__ import annotations

import collections
import traceback
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.bench import build_engine, random_batch
from spdf_dist.training.engine import Engine
from spdf_dist.training.setup import start

MODEL = (
    "model.num_layers=3", "model.hidden_size=64", "model.num_attention_heads=2", "model.seq_length=16",
    "model.vocab_size=100", "training.global_batch_size=3", "training.micro_batch_size=1", "training.warmup_tokens=0",
)  # fmt: skip

READS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default", "aten.equal.default"}
"""Operations whose result, or its shape, the host needs."""


class Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value, by file and line."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def count(self) -> None:
        frames = [frame for frame in traceback.extract_stack()[:-2] if frame.filename != __file__]
        reader = next(frame for frame in reversed(frames) if "/torch/" not in frame.filename)
        if not reader.filename.endswith("model/loss.py"):  # on a GPU, the loss is a kernel without reads
            self.found[f"{reader.filename.rsplit('/', 1)[-1]}:{reader.lineno}"] += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        boolean_index = str(function) == "aten.index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if str(function) in READS or boolean_index:
            self.count()
        return function(*args, **(kwargs or {}))


def started(precision: str, stage: int, execution: str, *settings: str) -> tuple[Engine, list[MicroBatch]]:
    """An engine after its first step, and a batch."""
    chosen = ("device=cpu", f"training.precision={precision}", f"parallel.zero_stage={stage}", "sparsity.level=0.5")
    config = load_config(PretrainConfig, "gpt2_small", [*MODEL, *chosen, *settings])
    groups = start(config, SINGLE_PROCESS)
    engine, batch = build_engine(config, groups, execution), random_batch(config, groups)
    engine.step(batch, 48, 1e-3)
    return engine, batch


@pytest.mark.parametrize("limit", [1e9, 0.0], ids=["applied", "skipped"])
@pytest.mark.parametrize("execution", ["dense", "masked"])
@pytest.mark.parametrize(
    ("precision", "stage"), [("fp32", 0), ("fp32", 1), ("bf16", 1), ("fp32", 2), ("bf16", 2), ("fp32", 3), ("bf16", 3)]
)
def test_a_step_reads_one_tensor_from_the_device(
    precision: str, stage: int, execution: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, batch = started(precision, stage, execution)
    reads = Reads()
    tolist = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        reads.count()
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    with reads:
        result = engine.step(batch, 48, 1e-3, norm_limit=limit)
    assert result.loss > 0 and result.grad_norm > 0 and result.skipped == (limit == 0.0)
    assert sum(reads.found.values()) == 1 and next(iter(reads.found)).startswith("engine.py"), reads.found


class Operations(TorchDispatchMode):
    """Counts operations on tensors that launch kernels on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and function.overloadpacket is not torch.ops.aten.detach:
            self.found[str(function)] += 1
        return function(*args, **(kwargs or {}))


def operations(precision: str, stage: int, layers: int) -> collections.Counter[str]:
    """The operations of the norm, clipping and update of a step, outside forward and backward pass."""
    engine, batch = started(precision, stage, "dense", f"model.num_layers={layers}", "training.clip_grad=1e-3")
    norm, update, counted = engine.gradient_norm, engine.update, Operations()

    def counted_norm() -> torch.Tensor:
        with counted:
            return norm()

    def counted_update(value: float) -> None:
        with counted:
            update(value)

    engine.gradient_norm, engine.update = counted_norm, counted_update  # type: ignore[method-assign]
    engine.step(batch, 48, 1e-3)
    return counted.found


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 1), ("bf16", 2), ("fp32", 1)])
def test_norm_clipping_and_update_have_no_operation_per_parameter(precision: str, stage: int) -> None:
    few, many = operations(precision, stage, 2), operations(precision, stage, 6)
    assert many == few and sum(few.values()) <= 40, (few, many - few)
