"""The chunked loss equals torch's on whole logits, without padding and ignored tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from spdf_dist.data.labels import IGNORED
from spdf_dist.model import loss as loss_module
from spdf_dist.model.loss import linear_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_rows", [3, 1000])
def test_loss_and_gradients(smoothing, chunk_rows, monkeypatch):
    tokens, width, words, padded = 23, 8, 37, 40
    monkeypatch.setattr(loss_module, "LOGITS_CHUNK", chunk_rows * padded)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(padded, width, generator=generator, requires_grad=True)
    labels = torch.randint(0, words, (tokens,), generator=generator)
    labels[::5] = IGNORED
    total = linear_cross_entropy(
        hidden, weight, labels, vocab_start=0, vocab_size=words, group=None, label_smoothing=smoothing
    )
    gradients = torch.autograd.grad(total * 0.5, (hidden, weight))
    kept = labels != IGNORED
    plain = F.cross_entropy(hidden[kept] @ weight[:words].T, labels[kept], reduction="sum", label_smoothing=smoothing)
    expected = torch.autograd.grad(plain * 0.5, (hidden, weight))
    torch.testing.assert_close(total, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], expected[1], rtol=1e-4, atol=1e-5)
    assert not gradients[1][words:].any()


def test_without_gradients_it_is_the_same_sum():
    hidden, weight = torch.randn(5, 4), torch.randn(9, 4)
    labels = torch.tensor([0, 8, IGNORED, 3, 3])
    total = linear_cross_entropy(hidden, weight, labels, vocab_start=0, vocab_size=9, group=None)
    torch.testing.assert_close(total, F.cross_entropy(hidden @ weight.T, labels, reduction="sum"))


def test_a_second_derivative_is_refused():
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    total = linear_cross_entropy(hidden, weight, torch.tensor([0, 8, 1, 3, 3]), vocab_start=0, vocab_size=9, group=None)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(total, hidden, create_graph=True)
