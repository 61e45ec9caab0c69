"""The fused loss equals torch's, with ignored labels, padded vocabulary and smoothing, also in the model's loss."""

from __future__ import annotations

import pytest
import torch
from spdf_kernels.triton import cross_entropy as fused

from spdf_dist.model import loss as model_loss


@pytest.mark.parametrize("words", [37, 4096, 5000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_those_of_torch(
    words: int, smoothing: float, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    real = words - 5
    logits = (3 * torch.randn(6, words)).to(device, dtype)
    labels = torch.tensor([0, real - 1, -100, 7, 7, 1], device=device)
    wide = logits[:, :real].float().detach().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(wide, labels, reduction="none", label_smoothing=smoothing)
    wanted.sum().backward()
    assert wide.grad is not None
    untouched = logits.clone()
    loss = fused.cross_entropy_(untouched, labels, real=real, smoothing=smoothing, ignored=-100, gradient=False)
    assert torch.equal(untouched, logits)
    torch.testing.assert_close(loss, wanted.detach(), atol=1e-4, rtol=1e-5)
    fused.cross_entropy_(logits, labels, real=real, smoothing=smoothing, ignored=-100, gradient=True)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(logits[:, :real].float(), wide.grad, atol=tolerance, rtol=tolerance)
    assert not logits[:, real:].any() and not logits[2].any()


def test_a_nan_stays_in_its_row(device: torch.device) -> None:
    logits = torch.randn(3, 20, device=device)
    logits[1, 4] = torch.nan
    labels = torch.tensor([0, 1, 2], device=device)
    loss = fused.cross_entropy_(logits, labels, real=20, smoothing=0.0, ignored=-100, gradient=True)
    assert torch.isfinite(loss).tolist() == [True, False, True] and torch.isfinite(logits[[0, 2]]).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_model_takes_it_and_gets_the_same_gradients(
    smoothing: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    labels = torch.randint(50, (33,), device=device)
    labels[3] = -100
    results = []
    for takes in (True, False):
        torch.manual_seed(1)
        hidden = torch.randn(33, 16).to(device).requires_grad_()
        weight = torch.randn(56, 16).to(device).requires_grad_()
        if not takes:
            monkeypatch.setattr(fused, "takes", lambda logits: False)
        total = model_loss.linear_cross_entropy(
            hidden, weight, labels, vocab_start=0, vocab_size=50, group=None, label_smoothing=smoothing
        )
        total.backward()
        results.append((total.detach(), hidden.grad, weight.grad))
    for own, plain in zip(*results, strict=True):
        torch.testing.assert_close(own, plain, atol=1e-4, rtol=1e-5)


def test_the_trial_passes(device: torch.device) -> None:
    assert fused._trial(device) is None
