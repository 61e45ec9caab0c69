"""Compares the estimated buffer of the loss with the loss, for more logits than one chunk."""

from __future__ import annotations

import pytest
import torch
from live_logits import LiveLogits

from spdf_dist.accounting.layout import Layout
from spdf_dist.accounting.memory import activation_bytes
from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.architecture import LOGITS_CHUNK, padded_vocab_size
from spdf_dist.model.loss import linear_cross_entropy


@pytest.mark.parametrize(("tokens", "precision"), [(1200, "fp32"), (1200, "bf16"), (100, "bf16")])
def test_logits_held_at_once(tokens: int, precision: str) -> None:
    model = ModelConfig(num_layers=1, hidden_size=4, num_attention_heads=1, seq_length=tokens, vocab_size=65_001)
    words = padded_vocab_size(model.vocab_size, 1)
    assert (tokens * words > 2 * LOGITS_CHUNK) == (tokens == 1200)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    hidden = torch.randn(tokens, model.hidden_size, dtype=dtype, requires_grad=True)
    weight = torch.randn(words, model.hidden_size, dtype=dtype, requires_grad=True)
    labels = torch.randint(model.vocab_size, (tokens,))
    with LiveLogits(words) as logits:
        linear_cross_entropy(hidden, weight, labels, vocab_start=0, vocab_size=model.vocab_size, group=None)
    layout = Layout(1, 1, 1, 1, "dense", precision, False)
    assert logits.most == activation_bytes(model, layout)["logits"]
