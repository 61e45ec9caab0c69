"""The fused loss equals torch's, with ignored labels, padded vocabulary and smoothing, also in the model's loss."""

from __future__ import annotations

import functools
from typing import Any

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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_that_divide_the_vocabulary_get_the_same_loss_and_gradient(
    smoothing: float, dtype: torch.dtype, device: torch.device
) -> None:
    share = 4200  # more than a block; the third rank has padding only
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 3 * share)).to(device, dtype)
    logits[1, :share] -= 200  # the maximum is on the second rank
    words = share + 40
    labels = torch.tensor([0, words - 1, -100, share, 39], device=device)
    whole = logits[:, :words].clone()
    settings: dict[str, Any] = {"smoothing": smoothing, "ignored": -100}
    wanted = fused.cross_entropy_(whole, labels, real=words, gradient=True, **settings)
    given: dict[str, list[torch.Tensor]] = {"maximum": [], "total": []}
    reduced: dict[str, torch.Tensor] = {}

    def reduce(name: str, tensor: torch.Tensor) -> None:
        """Keep the tensor of a rank, or replace it by that of all ranks once this is known."""
        if name in reduced:
            tensor.copy_(reduced[name])
        else:
            given[name].append(tensor.clone())

    def of_rank(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = logits[:, rank * share : (rank + 1) * share].clone()
        loss = fused.sharded_cross_entropy_(
            own, labels, start=rank * share, real=max(0, min(share, words - rank * share)), vocabulary=words,
            maximum=functools.partial(reduce, "maximum"), total=functools.partial(reduce, "total"),
            gradient=len(reduced) == 2, **settings,
        )  # fmt: skip
        return loss, own

    for name, combine in (("maximum", torch.amax), ("total", torch.sum)):
        given[name] = []
        for rank in range(3):
            of_rank(rank)
        reduced[name] = combine(torch.stack(given[name]), 0)
    results = [of_rank(rank) for rank in range(3)]
    for loss, _ in results:
        torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-5)
    gradient = torch.cat([own for _, own in results], 1)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(gradient[:, :words], whole, atol=tolerance, rtol=tolerance)
    assert not gradient[:, words:].any() and not gradient[2].any()


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
