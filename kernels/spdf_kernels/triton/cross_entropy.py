"""Cross-entropy of logits on a GPU in two passes: the loss, then the gradient in place.

torch takes more passes, over a float32 copy. If ranks divide the vocabulary, the passes are two kernels, and the ranks
reduce four numbers per token in between.

Shapes: C tokens, V words of this rank, of which the first ``real`` are in the vocabulary and the others are padding.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spdf_kernels.triton.availability import current, interpreted, missing

BLOCK = 4096
WARPS = 8


def takes(logits: Tensor) -> bool:
    """Whether the kernels support these logits, and a trial on their device gave the right numbers."""
    return logits.device.type == ("cpu" if interpreted() else "cuda") and _works(logits.device)


def cross_entropy_(
    logits_CV: Tensor, labels_C: Tensor, *, real: int, smoothing: float, ignored: int, gradient: bool
) -> Tensor:
    """Loss of each token, float32 [C]: (1 - smoothing) nll + smoothing times the mean over the first `real` words.

    With ``gradient`` the contiguous logits, bfloat16 or float32, are replaced by the gradient of the sum of the losses.
    A label of ``ignored`` has neither loss nor gradient.
    """
    from spdf_kernels.triton import kernels

    tokens, words = logits_CV.shape
    loss_C = torch.empty(tokens, dtype=torch.float32, device=logits_CV.device)
    if tokens:
        with current(logits_CV.device):
            kernels.cross_entropy[(tokens,)](
                logits_CV, labels_C.contiguous(), loss_C, words, real, float(smoothing), smoothing / real, ignored,
                BLOCK=BLOCK, GRADIENT=gradient, num_warps=WARPS,
            )  # fmt: skip
    return loss_C


def sharded_cross_entropy_(
    logits_CV: Tensor,
    labels_C: Tensor,
    *,
    start: int,
    real: int,
    vocabulary: int,
    smoothing: float,
    ignored: int,
    gradient: bool,
    maximum: Callable[[Tensor], object],
    total: Callable[[Tensor], object],
) -> Tensor:
    """`cross_entropy_` where ranks divide the words of a ``vocabulary``; this rank has those from ``start`` on.

    Every rank returns the whole loss. ``maximum`` and ``total`` reduce a float32 tensor over the ranks, in place; each
    is called once.
    """
    from spdf_kernels.triton import kernels

    tokens, words = logits_CV.shape
    labels_C = labels_C.contiguous()
    found_4C = torch.empty(4, tokens, dtype=torch.float32, device=logits_CV.device)
    if tokens:
        with current(logits_CV.device):
            kernels.shard_statistics[(tokens,)](
                logits_CV, labels_C, found_4C, tokens, words, real, start, ignored, BLOCK=BLOCK, num_warps=WARPS
            )
    largest_C, sums_3C = found_4C[0].clone(), found_4C[1:]
    maximum(largest_C)
    sums_3C[0] *= (found_4C[0] - largest_C).exp()
    total(sums_3C)
    lse_C = largest_C + sums_3C[0].log()
    of_uniform = smoothing / vocabulary
    loss_C = lse_C - of_uniform * sums_3C[1] - (1 - smoothing) * sums_3C[2]
    if gradient and tokens:
        with current(logits_CV.device):
            kernels.shard_gradient[(tokens,)](
                logits_CV, labels_C, lse_C, words, real, start, float(smoothing), of_uniform, ignored,
                BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip
    return torch.where(labels_C != ignored, loss_C, 0.0)


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether a small trial gives the right result; a failure is reported once. The interpreter needs no trial."""
    reason = missing()
    if reason is None and not interpreted():
        reason = _trial(device)
        if reason is not None:
            warnings.warn(f"the loss runs in torch: the fused kernel {reason}", stacklevel=2)
    return reason is None


def _trial(device: torch.device) -> str | None:
    real = BLOCK + 90
    logits = torch.randn(4, BLOCK + 100, generator=torch.Generator(device).manual_seed(0), device=device)
    labels = torch.tensor([3, 0, real - 1, 1], device=device)
    wide = logits[:, :real].clone()
    loss = torch.nn.functional.cross_entropy(wide, labels, reduction="none", label_smoothing=0.1)
    gradient = wide.softmax(1) - 0.1 / real - 0.9 * torch.nn.functional.one_hot(labels, real)
    settings: dict[str, Any] = {"real": real, "smoothing": 0.1, "ignored": -100, "gradient": True}
    alone: dict[str, Any] = {"start": 0, "vocabulary": real, "maximum": lambda x: None, "total": lambda x: None}
    functions: list[tuple[Callable[..., Tensor], dict[str, Any]]] = [
        (cross_entropy_, settings), (sharded_cross_entropy_, settings | alone),
    ]  # fmt: skip
    try:
        for function, given in functions:
            own = logits.clone()
            right = torch.allclose(function(own, labels, **given), loss, atol=1e-4)
            if not (right and torch.allclose(own[:, :real], gradient, atol=1e-5)):
                return "gives wrong numbers"
    except Exception as error:  # of Triton, its compiler or the driver: the kernel is not used
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None
