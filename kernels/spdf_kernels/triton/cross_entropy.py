"""Cross-entropy of logits on a GPU in two passes: the loss, then the gradient in place.

torch takes more passes, over a float32 copy.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from spdf_kernels.triton.availability import current, interpreted, missing

BLOCK = 4096
WARPS = 8


def takes(logits: Tensor) -> bool:
    """Whether the kernel supports these logits, and a trial on their device gave the right numbers."""
    return logits.device.type == ("cpu" if interpreted() else "cuda") and _works(logits.device)


def cross_entropy_(
    logits_CV: Tensor, labels_C: Tensor, *, real: int, smoothing: float, ignored: int, gradient: bool
) -> Tensor:
    """Loss of each token, float32 [C]: (1 - smoothing) nll + smoothing times the mean over the first `real` words.

    With ``gradient`` the contiguous logits, bfloat16 or float32, are replaced by the gradient of the sum of the losses.
    Words from ``real`` on are padding. A label of ``ignored`` has neither loss nor gradient.
    """
    from spdf_kernels.triton import kernels

    tokens, words = logits_CV.shape
    loss_C = torch.empty(tokens, dtype=torch.float32, device=logits_CV.device)
    if tokens:
        with current(logits_CV.device):
            kernels.cross_entropy[(tokens,)](
                logits_CV,
                labels_C.contiguous(),
                loss_C,
                words,
                real,
                float(smoothing),
                smoothing / real,
                ignored,
                BLOCK=BLOCK,
                GRADIENT=gradient,
                num_warps=WARPS,
            )
    return loss_C


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
    try:
        own = cross_entropy_(logits, labels, real=real, smoothing=0.1, ignored=-100, gradient=True)
        right = torch.allclose(own, loss, atol=1e-4) and torch.allclose(logits[:, :real], gradient, atol=1e-5)
    except Exception as error:  # of Triton, its compiler or the driver: the kernel is not used
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None if right else "gives wrong numbers"
