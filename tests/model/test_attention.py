"""Causal attention in bf16 on a CPU without bf16 instructions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from spdf_kernels import dense

from spdf_dist.model.layers import CausalAttention


def test_bf16_without_its_instructions_attends_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output and all gradients equal those of float32 attention on the widened operands, rounded once."""
    monkeypatch.setattr(dense, "_BF16_IS_EMULATED", True)
    config = SimpleNamespace(attention_dropout=0.0, num_query_groups=2, num_attention_heads=4)
    groups = SimpleNamespace(tp=SimpleNamespace(rank=lambda: 0))
    attention = CausalAttention(config=config, pg_collection=groups)
    generator = torch.Generator().manual_seed(0)
    sizes = [(9, 2, 4, 8), (9, 2, 2, 8), (9, 2, 2, 8)]
    narrow = [torch.randn(size, generator=generator).bfloat16().requires_grad_() for size in sizes]
    wide = [tensor.detach().float().requires_grad_() for tensor in narrow]
    dy = torch.randn(9, 2, 32, generator=generator).bfloat16()
    found = attention(*narrow)
    exact = attention(*wide)
    pairs = [(found, exact)]
    pairs += zip(torch.autograd.grad(found, narrow, dy), torch.autograd.grad(exact, wide, dy.float()), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-8, atol=1e-6)
