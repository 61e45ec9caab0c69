"""Moving a sparse linear layer to another device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spdf_kernels import SparsityPattern

from spdf_dist.model.architecture import TensorSpec
from spdf_dist.parallel.linear import ParallelLinear


def compressed_linear() -> ParallelLinear:
    where = {"part": "", "parameter": "", "hf_name": "", "shard_dim": 0}
    return ParallelLinear(
        weights=[TensorSpec("w", (6, 8), "hidden", **where)],
        biases=[TensorSpec("b", (6,), "bias", **where)],
        tensor_rank=0,
        tensor_size=1,
        masks={"w": np.random.default_rng(0).random((6, 8)) < 0.5},
        execution="compressed",
        dtype=torch.float32,
    )


def test_the_pattern_follows_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = compressed_linear()
    before = linear.pattern
    linear.to(torch.bfloat16)
    assert linear.pattern is before
    made: list[torch.Tensor] = []
    monkeypatch.setattr(SparsityPattern, "from_mask", staticmethod(made.append))
    linear.to("meta")  # stands for a GPU
    assert len(made) == 1 and made[0].device.type == "meta" and made[0].shape == (6, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compressed_runs_on_a_gpu() -> None:
    linear = compressed_linear()
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    x = torch.randn(5, 8)
    expected = linear.local(x, linear.bias)
    y = linear.to("cuda").local(x.cuda(), linear.bias)
    torch.testing.assert_close(y.cpu(), expected)
    y.sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.shape == linear.weight.shape
