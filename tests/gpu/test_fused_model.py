"""The model takes the fused kernels for norms, rotary positions, activations and loss, with the same gradients."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from spdf_kernels.triton import cross_entropy
from spdf_kernels.triton import layers as kernels

from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.model import fused, layers
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.training.setup import build_model, start

SETTINGS = (
    "model.num_layers=2", "model.hidden_size=32", "model.num_attention_heads=4", "model.seq_length=8",
    "model.vocab_size=50", "sparsity.level=0", "training.precision=fp32", "training.global_batch_size=2",
    "training.micro_batch_size=2", "training.warmup_tokens=0",
)  # fmt: skip
LAUNCHES = {
    "gpt2": {"AddNorm": 7, "BiasGelu": 2, "loss": 1},
    "llama": {"AddNorm": 7, "SwiGLU": 2, "Rotary": 2, "loss": 1},
}
"""Per layer two norms and the last sum, and the last norm of the model."""


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", LAUNCHES)
def test_loss_and_gradients_are_those_of_torch(
    family: str, recompute: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["model.num_key_value_heads=2"] if family == "llama" else []
    config = load_config(
        PretrainConfig,
        "llama_10m" if family == "llama" else "gpt2_small",
        [*SETTINGS, *options, f"training.activation_checkpointing={recompute}", f"device={device.type}"],
    )
    groups = start(config, SINGLE_PROCESS)
    model = build_model(config, config.model, groups, {}, {})
    initialize_parameters(model, config.model, config.sparsity, 1)
    model = model.to(device).train()
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0)).to(device)
    assert kernels.unusable(torch.empty(1, 32, device=device)) is None  # runs the trial, whose launches do not count
    assert cross_entropy.takes(torch.empty(1, 50, device=device))
    launches: collections.Counter[str] = collections.Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            launches[name] += 1
            return function(*arguments, **more)

        return call

    for kind in ("AddNorm", "BiasGelu", "SwiGLU", "Rotary"):
        function = getattr(kernels, kind)
        monkeypatch.setattr(function, "apply", counted(kind, function.apply))
    monkeypatch.setattr(cross_entropy, "cross_entropy_", counted("loss", cross_entropy.cross_entropy_))

    def results() -> list[torch.Tensor]:
        loss = model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    own = results()
    expected = LAUNCHES[family]
    assert recompute or launches == expected, launches
    for module in (fused, layers):
        monkeypatch.setattr(module, "unusable", lambda x: "not in this test")
    monkeypatch.setattr(cross_entropy, "takes", lambda logits: False)
    launches.clear()
    plain = results()
    assert not launches
    for found, reference in zip(own, plain, strict=True):
        torch.testing.assert_close(found, reference, atol=2e-4, rtol=2e-4)
