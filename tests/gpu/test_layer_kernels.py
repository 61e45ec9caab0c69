"""Norms, residual additions, dropout and activation functions in fused kernels equal torch's, with their gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from spdf_kernels.triton import layers
from torch import Tensor

from spdf_dist.model.llama.rotary import inverse_frequencies, rotate

SHAPES = ((5, 3, 130), (2, 1), (9, 2048))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, count: int) -> list[Tensor]:
    """``count`` tensors of a shape, then three vectors of its last dimension."""
    torch.manual_seed(0)
    shapes = [shape] * count + [shape[-1:]] * 3
    return [torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes]


def assert_same(own: Callable[..., tuple[Tensor, ...]], plain: Callable[..., tuple[Tensor, ...]], given: list[Tensor]):  # type: ignore[no-untyped-def]
    """Compare results and gradients with a plain function in float64. Unused inputs have no gradient in both."""
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    results = own(*given), plain(*wide)
    for result, reference in zip(*results, strict=True):
        near(result.detach(), reference.detach())
    weights = [torch.randn_like(result) for result in results[0]]
    gradients = [
        torch.autograd.grad(
            sum((result * weight.to(result.dtype)).sum() for result, weight in zip(found, weights, strict=True)),
            tensors,
            allow_unused=True,
        )
        for found, tensors in zip(results, (given, wide), strict=True)
    ]
    for gradient, reference in zip(*gradients, strict=True):
        assert (gradient is None) == (reference is None)
        if gradient is not None and reference is not None:
            near(gradient, reference)


def near(result: Tensor, reference: Tensor) -> None:
    assert result.shape == reference.shape
    scale = reference.norm().clamp_min(1e-3 * reference.numel() ** 0.5)
    assert float((result.double() - reference).norm() / scale) < TOLERANCE[result.dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rms", [False, True])
def test_the_norm_of_a_sum_is_torchs_and_so_are_its_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, rms: bool, device: torch.device
) -> None:
    size = shape[-1:]

    def own(x: Tensor, residual: Tensor, bias: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        return layers.add_norm(x, None if rms else bias, residual, weight, None if rms else shift, 1e-2)

    def plain(x: Tensor, residual: Tensor, bias: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        h = residual + x if rms else residual + (x + bias)
        rounded = h + (h.to(dtype).double() - h).detach()
        normal = F.rms_norm(rounded, size, weight, 1e-2) if rms else F.layer_norm(rounded, size, weight, shift, 1e-2)
        return h, normal

    assert_same(own, plain, inputs(shape, dtype, device, 2))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_without_a_sum_the_gradient_of_the_residual_branch_is_added(dtype: torch.dtype, device: torch.device) -> None:
    given = inputs((7, 130), dtype, device, 1)
    assert_same(
        lambda x, bias, weight, shift: layers.add_norm(x, None, None, weight, shift, 1e-5),
        lambda x, bias, weight, shift: (x, F.layer_norm(x, (130,), weight, shift, 1e-5)),
        given,
    )
    x, _, weight, shift = given
    h, _ = layers.add_norm(x, None, None, weight, shift, 1e-5)
    (gradient,) = torch.autograd.grad(h.sum(), x)  # the norm is not used
    assert torch.equal(gradient, torch.ones_like(x))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_without_a_norm_it_is_a_sum(dtype: torch.dtype, device: torch.device) -> None:
    assert_same(
        lambda x, residual, bias, *_: layers.add_norm(x, bias, residual, None, None, 0.0)[:1],
        lambda x, residual, bias, *_: (residual + (x + bias),),
        inputs((9, 130), dtype, device, 2),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_activation_functions_are_torchs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    given = inputs(shape, dtype, device, 1)
    assert_same(
        lambda x, bias, *_: (layers.bias_gelu(x, bias), layers.bias_gelu(x, None)),
        lambda x, bias, *_: (F.gelu(x + bias, approximate="tanh"), F.gelu(x, approximate="tanh")),
        given,
    )
    assert_same(
        lambda x, *_: (layers.swiglu(torch.cat([x, x * x], -1)),),
        lambda x, *_: (F.silu(x) * (x * x).to(dtype).double(),) if dtype == torch.float32 else (F.silu(x) * (x * x),),
        given,
    )


@pytest.mark.parametrize(
    ("T", "B", "heads", "groups", "size"), [(5, 2, 4, 2, 64), (3, 1, 3, 1, 10), (2, 3, 20, 5, 128)]
)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rotary_positions_are_those_of_the_reference(
    T: int, B: int, heads: int, groups: int, size: int, dtype: torch.dtype, device: torch.device
) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    model = SimpleNamespace(head_size=size, rope_theta=5e5, rope_scaling=SimpleNamespace(**scaling))
    positions = torch.arange(T, dtype=torch.float64) * 1000 + 7
    angles = (positions[:, None] * inverse_frequencies(model).double()).to(device)  # type: ignore[arg-type]

    def own(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        q, k, v = layers.rotary(x * 1, angles.cos().float(), angles.sin().float(), heads, groups)
        assert q.shape == (T, B, heads, size) and k.shape == v.shape == (T, B, groups, size)
        # Attention permutes, so that the gradients of q, k and v have other strides than those of x.
        return q.permute(1, 2, 0, 3).contiguous(), k.transpose(-1, -2).contiguous(), v * v

    def plain(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        q, k, v = x.unflatten(-1, (-1, size)).split((heads, groups, groups), dim=2)
        q, k = (rotate(part, angles[:, None, None, :]) for part in (q, k))
        return q.permute(1, 2, 0, 3), k.transpose(-1, -2), v * v

    assert_same(own, plain, inputs((T, B, (heads + 2 * groups) * size), dtype, device, 1)[:1])


def test_rotary_positions_are_applied_in_place_and_autograd_knows(device: torch.device) -> None:
    x = torch.randn(3, 1, 48, device=device, requires_grad=True)
    saved = x.exp()  # autograd keeps the result, which the rotation overwrites
    q, _, _ = layers.rotary(saved, torch.ones(3, 8, device=device), torch.zeros(3, 8, device=device), 1, 1)
    assert q.data_ptr() == saved.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        q.sum().backward()


def test_dropout_drops_a_share_and_the_same_features_again(device: torch.device) -> None:
    x, residual, bias, weight, shift = inputs((64, 1000), torch.float32, device, 2)
    dropout = layers.Dropout(0.25, 12345)
    h, _ = layers.add_norm(x, bias, residual, None, None, 0.0, dropout)
    kept = (h != residual).float()
    assert abs(float(kept.mean()) - 0.75) < 0.01 and float(kept.mean(0).std()) < 0.08
    torch.testing.assert_close(h, residual + kept * (x + bias) / 0.75)
    other, _ = layers.add_norm(x, bias, residual, None, None, 0.0, layers.Dropout(0.25, 12346))
    assert 0.55 < float(((other != residual) == (h != residual)).float().mean()) < 0.7
    assert_same(
        lambda x, residual, bias, weight, shift: layers.add_norm(x, bias, residual, weight, shift, 1e-5, dropout),
        lambda x, residual, bias, weight, shift: (
            (h := residual + kept.double() * (x + bias) / 0.75),
            F.layer_norm(h, (1000,), weight, shift, 1e-5),
        ),
        [x, residual, bias, weight, shift],
    )


def test_a_non_contiguous_input_and_no_row_are_taken(device: torch.device) -> None:
    x = torch.randn(3, 5, 70, device=device).transpose(0, 1)
    assert torch.equal(layers.bias_gelu(x, None), layers.bias_gelu(x.contiguous(), None))
    empty, weight = torch.zeros(0, 70, device=device, requires_grad=True), torch.ones(70, device=device)
    weight.requires_grad_()
    h, y = layers.add_norm(empty, None, empty, weight, None, 1e-5)
    (h.sum() + y.sum() + layers.swiglu(empty).sum()).backward()
    assert weight.grad is not None and not weight.grad.any()


def test_the_trial_passes_and_finds_wrong_kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert layers.trial(device) is None
    monkeypatch.setattr(layers, "swiglu", lambda x: x[..., :100].contiguous())
    assert "wrong: swiglu, torch.float32; swiglu, torch.bfloat16" in str(layers.trial(device))
    monkeypatch.setattr(layers, "bias_gelu", lambda x, bias: 1 / 0)
    assert "ZeroDivisionError" in str(layers.trial(device))


def test_what_the_kernels_do_not_take_is_said(device: torch.device) -> None:
    assert layers.unusable(torch.empty(2, 70, device=device)) is None
    assert "float64" in str(layers.unusable(torch.empty(2, 70, device=device, dtype=torch.float64)))
    assert "at most 8192" in str(layers.unusable(torch.empty(1, 8193, device=device)))
    assert "not on meta" in str(layers.unusable(torch.empty(1, device="meta")))
