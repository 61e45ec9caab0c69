"""The operators under autograd, opcheck, activation checkpointing, the FLOP counter and torch.compile."""

import gc
import weakref

import pytest
import torch
from kernels_reference import BACKENDS, random_pattern, random_tensor
from spdf_kernels import SparsityPattern, dense_linear, sparse_linear
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

Case = tuple[SparsityPattern, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def case() -> Case:
    pattern = random_pattern(24, 40, 0.4, seed=0)
    x = random_tensor(18, 40, dtype=torch.float32, seed=1).requires_grad_()
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2).requires_grad_()
    bias = random_tensor(24, dtype=torch.float32, seed=3).requires_grad_()
    return pattern, x, values, bias


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    pattern, x, values, bias = case
    dy = random_tensor(18, 24, dtype=torch.float32, seed=4).requires_grad_()
    torch.library.opcheck(torch.ops.spdf.spmm, (x, values, bias, pattern.handle, 24))
    torch.library.opcheck(torch.ops.spdf.spmm, (x, values, None, pattern.handle, 24))
    torch.library.opcheck(torch.ops.spdf.spmm_transposed, (dy, values, pattern.handle, 40))
    torch.library.opcheck(torch.ops.spdf.sddmm, (dy, x, pattern.handle, pattern.nnz))
    torch.library.opcheck(torch.ops.spdf.onednn_linear, (x, values[:80].view(2, 40), None))


def test_sizes_of_results_do_not_depend_on_the_handle() -> None:
    """A compiled graph from the disk cache has other patterns with the same handles in the next process."""
    with FakeTensorMode():
        x, values, dy = torch.zeros(18, 40), torch.zeros(7), torch.zeros(18, 24)
        assert torch.ops.spdf.spmm(x, values, None, 0, 24).shape == (18, 24)
        assert torch.ops.spdf.spmm_transposed(dy, values, 0, 40).shape == (18, 40)
        assert torch.ops.spdf.sddmm(dy, x, 0, 7).shape == (7,)


def test_gradients_equal_those_of_the_dense_layer(case: Case) -> None:
    pattern, x, values, bias = case
    dy = random_tensor(18, 24, dtype=torch.float32, seed=4)
    sparse = torch.autograd.grad(sparse_linear(x, values, pattern, bias), (x, values, bias), dy)
    dense = torch.autograd.grad(torch.nn.functional.linear(x, pattern.to_dense(values), bias), (x, values, bias), dy)
    for ours, theirs in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_second_derivative(case: Case) -> None:
    pattern, x, values, _ = case

    def penalty(product: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (dx,) = torch.autograd.grad(product.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, values))

    ours = penalty(sparse_linear(x, values, pattern))
    theirs = penalty(torch.nn.functional.linear(x, pattern.to_dense(values)))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-2)


def test_only_what_is_asked_for(case: Case) -> None:
    pattern, x, values, _ = case
    (dvalues,) = torch.autograd.grad(sparse_linear(x.detach(), values, pattern).sum(), values)
    (dx,) = torch.autograd.grad(sparse_linear(x, values.detach(), pattern).sum(), x)
    assert dvalues.shape == values.shape and dx.shape == x.shape


def test_activation_checkpointing(case: Case) -> None:
    pattern, x, values, bias = case

    def layer(inner: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(sparse_linear(inner, values, pattern, bias))

    plain = torch.autograd.grad(layer(x).square().sum(), (x, values, bias))
    again = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), (x, values, bias))
    for left, right in zip(plain, again, strict=True):
        assert torch.equal(left, right)


def test_backward_keeps_the_pattern_alive(case: Case) -> None:
    _, x, _, _ = case
    pattern = random_pattern(24, 40, 0.4, seed=9)
    values = random_tensor(pattern.nnz, dtype=torch.float32, seed=2).requires_grad_()
    y = sparse_linear(x, values, pattern)
    seen = weakref.ref(pattern)
    del pattern
    gc.collect()
    y.sum().backward()
    del y
    gc.collect()
    assert seen() is None


def test_a_dead_handle_is_an_error(case: Case) -> None:
    _, x, values, _ = case
    with pytest.raises(ValueError, match="no living SparsityPattern"):
        torch.ops.spdf.spmm(x.detach(), values.detach(), None, 0, 24)


def test_no_dense_weight_is_kept_for_backward(case: Case) -> None:
    pattern, x, values, _ = case
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        sparse_linear(x, values, pattern)
    assert sorted(t.numel() for t in saved) == sorted([x.numel(), values.numel()])


def test_flop_counter(case: Case) -> None:
    pattern, x, values, bias = case
    with FlopCounterMode(display=False) as counter:
        sparse_linear(x, values, pattern, bias).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 18 * pattern.nnz
    weight = torch.randn(24, 40, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        dense_linear(x, weight).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 18 * 24 * 40


@pytest.mark.slow
def test_compile(case: Case) -> None:
    pattern, x, values, bias = case
    weight = torch.randn(16, 24, requires_grad=True)

    def layers(inner: torch.Tensor) -> torch.Tensor:
        return dense_linear(torch.nn.functional.gelu(sparse_linear(inner, values, pattern, bias)), weight)

    plain = torch.autograd.grad(layers(x).square().sum(), (x, values, bias, weight))
    compiled = torch.autograd.grad(torch.compile(layers, fullgraph=True)(x).square().sum(), (x, values, bias, weight))
    for left, right in zip(plain, compiled, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
