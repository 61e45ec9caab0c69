"""`sparse_linear` on the GPU back ends: the choice of the back end by pattern, and gradients."""

from __future__ import annotations

import pytest
import torch
from block_masks import Case, assert_near, block_grid, block_mask
from spdf_kernels import SparsityPattern, available_backends, describe, sparse_linear
from spdf_kernels.backends import backends
from spdf_kernels.triton import backends as triton_backends
from spdf_kernels.triton import trial

from spdf_dist.cli import doctor


@pytest.fixture
def block_case(device: torch.device) -> Case:
    return Case(block_mask(block_grid("unbalanced", 2, 3), 64), 33, torch.bfloat16, device)


@pytest.fixture
def unstructured_case(device: torch.device) -> Case:
    return Case(torch.rand(96, 130, generator=torch.Generator().manual_seed(0)) < 0.3, 33, torch.bfloat16, device)


def test_the_gpu_back_ends_come_first_and_are_there() -> None:
    first_two = list(available_backends().items())[:2]
    assert first_two == [("triton-block", None), ("triton-expand", None)]


def test_whole_blocks_are_skipped_and_all_else_is_expanded(block_case: Case, unstructured_case: Case) -> None:
    assert set(describe(block_case.pattern, torch.bfloat16)[:3]) == {"triton-block"}
    assert set(describe(block_case.pattern, torch.float16)[:3]) == {"triton-block"}
    assert set(describe(block_case.pattern, torch.float32)[:3]) == {"triton-expand"}
    assert set(describe(unstructured_case.pattern, torch.bfloat16)[:3]) == {"triton-expand"}


def test_why_the_block_kernels_do_not_take_a_mask_is_said(unstructured_case: Case, block_case: Case) -> None:
    block = next(backend for backend in backends() if backend.name == "triton-block")
    pattern = unstructured_case.pattern
    assert "whole blocks of 128 or 64" in str(block.supports(pattern.device, torch.bfloat16, pattern))
    assert "float32" in str(block.supports(block_case.pattern.device, torch.float32, block_case.pattern))
    assert "not on meta" in str(block.supports(torch.device("meta"), torch.bfloat16, pattern))


def test_doctor_tells_the_path_of_each_mask(device: torch.device) -> None:
    path = doctor.gpu_kernel_path(device.type)
    assert path.path == "blocks of 128: triton-block, blocks of 64: triton-block, other masks: triton-expand"
    assert doctor.gpu_layer_path(device.type).path == "fused Triton kernels"


@pytest.mark.parametrize("size", [64, None])
def test_a_trial_product_agrees_with_the_dense_one(size: int | None, device: torch.device) -> None:
    mask = torch.rand(96, 160) < 0.3 if size is None else block_mask(block_grid("balanced", 2, 4), size)
    assert trial._tried(device, mask, size) is None


def test_a_kernel_that_fails_or_is_wrong_is_not_used(
    block_case: Case, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    from spdf_kernels.triton import products

    grid = block_mask(block_grid("balanced", 2, 4), 64)
    with monkeypatch.context() as patch:
        patch.setattr(products, "sddmm", lambda *_: 1 / 0)
        assert "ZeroDivisionError" in str(trial._tried(device, grid, 64))
        patch.setattr(products, "sddmm", lambda dy, x, blocks, nnz: x.new_full((nnz,), float("nan")))
        assert "wrong by {'dw': nan}" in str(trial._tried(device, grid, 64))
    monkeypatch.setattr(triton_backends, "trial_of_blocks", lambda *_: "a trial product fails: no luck")
    assert describe(SparsityPattern.from_mask(block_case.pattern.mask()), torch.bfloat16).forward == "triton-expand"


@pytest.mark.parametrize("which", ["block_case", "unstructured_case"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_forward_and_gradients_are_those_of_a_dense_layer(
    which: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    case: Case = request.getfixturevalue(which)
    x, values, bias = (t.to(dtype).requires_grad_() for t in (case.x, case.values, case.bias))
    y = sparse_linear(x.view(3, 11, -1).transpose(0, 1), values, case.pattern, bias)  # a non-contiguous view
    assert_near(y.detach().transpose(0, 1).reshape(33, -1), case.y + case.bias.double())
    y.transpose(0, 1).reshape(33, -1).backward(case.dy.to(dtype))
    assert x.grad is not None and values.grad is not None and bias.grad is not None
    assert_near(x.grad, case.dx)
    assert_near(values.grad, case.dvalues)
    assert_near(bias.grad, case.dy.double().sum(0))


def test_no_dense_weight_is_kept_for_the_backward_pass(unstructured_case: Case) -> None:
    case = unstructured_case
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sparse_linear(case.x.requires_grad_(), case.values.requires_grad_(), case.pattern)
    assert sorted(kept) == sorted([case.x.numel(), case.values.numel()])
