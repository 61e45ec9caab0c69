"""Small trial products on the GPU before the first real product.

A kernel that does not compile, does not run or gives wrong numbers is not used, and the reason is reported. The
interpreter needs no trial.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from spdf_kernels.pattern import SparsityPattern
from spdf_kernels.triton.availability import current, interpreted
from spdf_kernels.triton.blocks import blocks_of

MAX_ERROR = 2e-2
"""Largest relative error, in the Frobenius norm, of bfloat16 products against dense ones."""
TOKENS = 200


@functools.cache
def trial_of_blocks(device: torch.device, size: int, balanced: bool) -> str | None:
    """Why the block kernels of one edge fail on a device; None if they do not. Compiling takes some seconds."""
    if interpreted():
        return None
    grid = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]] if balanced else [[1, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)
    return _tried(device, grid.repeat_interleave(size, 0).repeat_interleave(size, 1), size)


@functools.cache
def trial_of_expansion(device: torch.device) -> str | None:
    """Why expand or gather fails on a device; None if neither does."""
    if interpreted():
        return None
    return _tried(device, torch.rand(96, 160, generator=torch.Generator().manual_seed(0)) < 0.3, None)


def _tried(device: torch.device, mask: Tensor, size: int | None) -> str | None:
    try:
        with current(device):
            errors = _errors(mask.to(device), size)
    except Exception as error:  # of Triton, its compiler or the driver: the kernel is not used
        return f"a trial product fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    wrong = {product: error for product, error in errors.items() if not error < MAX_ERROR}
    return f"a trial product is wrong by {wrong}" if wrong else None


def _errors(mask: Tensor, size: int | None) -> dict[str, float]:
    """Relative error of each product."""
    from spdf_kernels.triton import products

    out, inputs = mask.shape
    generator = torch.Generator(mask.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=mask.device).to(torch.bfloat16)

    x, dy, weight = random(TOKENS, inputs), random(TOKENS, out), random(out, inputs) * mask
    pattern, values = SparsityPattern.from_mask(mask), weight[mask]
    wanted = {"y": x @ weight.t(), "dx": dy @ weight, "dw": (dy.t() @ x)[mask]}
    blocks = None if size is None else blocks_of(pattern, (size,))
    own: dict[str, Callable[[], Tensor]]
    if blocks is None:
        own = {
            "y": lambda: products.expanded_spmm(x, values, None, pattern, False),
            "dx": lambda: products.expanded_spmm(dy, values, None, pattern, True),
            "dw": lambda: products.expanded_sddmm(dy, x, pattern),
        }
    else:
        own = {
            "y": lambda: products.spmm(x, values, None, blocks, pattern.shape, False),
            "dx": lambda: products.spmm(dy, values, None, blocks, pattern.shape, True),
            "dw": lambda: products.sddmm(dy, x, blocks, pattern.nnz),
        }
    return {
        name: float((product().float() - wanted[name].float()).norm() / wanted[name].float().norm())
        for name, product in own.items()
    }
