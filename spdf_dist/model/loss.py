"""Cross-entropy of vocabulary-parallel logits that never holds all logits at once.

Shapes: N tokens, C tokens of a chunk, D hidden size, V vocabulary rows of this rank (with padding).

megatron-core's own vocabulary-parallel loss is not used, because it averages label smoothing over padding logits (-inf)
and keeps three copies of the logits. Here the gradient of each chunk's logits replaces the logits in place. On a GPU,
kernels compute it in two passes over the logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from spdf_kernels import dense_linear
from spdf_kernels.triton import cross_entropy
from torch import Tensor

from spdf_dist.data.labels import IGNORED
from spdf_dist.model.architecture import LOGITS_CHUNK, LOGITS_CHUNK_CUDA
from spdf_dist.parallel.megatron_core import copy_to_tensor_model_parallel_region


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    vocab_start: int,
    vocab_size: int,
    group: dist.ProcessGroup | None,
    label_smoothing: float = 0.0,
    sum_gradient: bool = True,
) -> Tensor:
    """The sum of the token losses, an fp32 scalar that is differentiable once in ``hidden_ND`` and ``weight_VD``.

    Args:
        hidden_ND: hidden states after the last norm.
        weight_VD: this rank's rows of the output layer.
        labels_N: global token ids, or IGNORED for tokens that do not count.
        vocab_start: global index of this rank's first row.
        vocab_size: size of the vocabulary. Rows from this global index on are padding, whose logits are -inf.
        group: the ranks that divide the vocabulary; None for a single rank.
        label_smoothing: e in the loss (1 - e) * nll + e * (mean nll over the vocabulary), as in LoRA's code and torch.
        sum_gradient: whether the gradient of ``hidden_ND`` is summed over ``group``; if not, the caller must do it.
    """
    if group is not None and sum_gradient:
        hidden_ND = copy_to_tensor_model_parallel_region(hidden_ND)
    with_gradients = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    total: Tensor = LinearCrossEntropy.apply(
        hidden_ND, weight_VD, labels_N, vocab_start, vocab_size, group, label_smoothing, with_gradients
    )
    return total


def fused_loss(
    start: int, vocabulary: int, real: int, group: dist.ProcessGroup | None, smoothing: float, gradient: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """The kernel of (logits [C, V], labels [C]) that returns the token losses and replaces the logits by gradients."""
    settings: dict[str, Any] = {"real": real, "smoothing": smoothing, "ignored": IGNORED, "gradient": gradient}
    if group is None:
        return functools.partial(cross_entropy.cross_entropy_, **settings)
    return functools.partial(
        cross_entropy.sharded_cross_entropy_,
        start=start,
        vocabulary=vocabulary,
        maximum=functools.partial(dist.all_reduce, op=dist.ReduceOp.MAX, group=group),
        total=functools.partial(dist.all_reduce, group=group),
        **settings,
    )


class LinearCrossEntropy(torch.autograd.Function):
    """Computes both gradients in the forward pass, chunk by chunk. The backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        vocab_start: int,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        smoothing: float,
        with_gradients: bool,
    ) -> Tensor:
        real = max(0, min(weight_VD.shape[0], vocab_size - vocab_start))
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        if with_gradients:
            d_hidden_ND = torch.empty_like(hidden_ND)
            d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        fused = None
        if cross_entropy.takes(hidden_ND):
            fused = fused_loss(vocab_start, vocab_size, real, group, smoothing, with_gradients)
        most = LOGITS_CHUNK_CUDA if hidden_ND.is_cuda else LOGITS_CHUNK
        chunk = max(1, most // weight_VD.shape[0])
        for begin in range(0, hidden_ND.shape[0], chunk):
            hidden_CD, labels_C = hidden_ND[begin : begin + chunk], labels_N[begin : begin + chunk]
            if fused is not None:
                logits_CV = dense_linear(hidden_CD, weight_VD)
                total += fused(logits_CV, labels_C).sum()
                if with_gradients:
                    d_hidden_ND[begin : begin + chunk] = dense_linear(logits_CV, weight_VD.t())
                    d_weight_VD += logits_CV.t() @ hidden_CD
                continue
            counted_C = labels_C != IGNORED
            logits_CV = dense_linear(hidden_CD, weight_VD).float()
            logits_CV[:, real:] = -torch.inf
            largest_C = logits_CV.amax(dim=1)
            if group is not None:
                dist.all_reduce(largest_C, op=dist.ReduceOp.MAX, group=group)
            logits_CV -= largest_C[:, None]
            local_C = labels_C - vocab_start
            here_C = counted_C & (local_C >= 0) & (local_C < real)
            row_C = here_C.nonzero().squeeze(1)
            column_C = local_C[row_C]
            sums_3C = logits_CV.new_zeros(3, labels_C.shape[0])
            sums_3C[0, row_C] = logits_CV[row_C, column_C]
            if smoothing:
                sums_3C[1] = logits_CV[:, :real].sum(dim=1)
            probability_CV = logits_CV.exp_()
            sums_3C[2] = probability_CV.sum(dim=1)
            if group is not None:
                dist.all_reduce(sums_3C, group=group)
            log_sum_C = sums_3C[2].log()
            loss_C = log_sum_C - (1 - smoothing) * sums_3C[0] - smoothing / vocab_size * sums_3C[1]
            total += torch.where(counted_C, loss_C, 0).sum()
            if not with_gradients:
                del logits_CV, probability_CV  # otherwise they would be held together with the next chunk's
                continue
            probability_CV /= sums_3C[2][:, None]
            if smoothing:
                probability_CV[:, :real] -= smoothing / vocab_size
            probability_CV[row_C, column_C] -= 1 - smoothing
            # Rows are overwritten and not multiplied by 0, because a product would keep a NaN of an ignored token.
            probability_CV.index_fill_(0, (~counted_C).nonzero().squeeze(1), 0)
            d_logits_CV = probability_CV.to(hidden_ND.dtype)
            d_hidden_ND[begin : begin + chunk] = dense_linear(d_logits_CV, weight_VD.t())
            if d_logits_CV.dtype == d_weight_VD.dtype:
                # `addmm_` adds into the sum directly. A product would be as large as the sum, and oneDNN would copy
                # the transposed logits for it.
                d_weight_VD.addmm_(d_logits_CV.t(), hidden_CD)
            else:
                d_weight_VD += d_logits_CV.t() @ hidden_CD
            del logits_CV, probability_CV, d_logits_CV
        if with_gradients:
            ctx.save_for_backward(d_hidden_ND, d_weight_VD)
            ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # with create_graph, autograd would treat the stored gradients as constants
            raise RuntimeError("linear_cross_entropy has no second derivative")
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        scale = gradients[0]
        d_weight = (d_weight_VD * scale).to(ctx.weight_dtype)
        return d_hidden_ND * scale.to(d_hidden_ND.dtype), d_weight, None, None, None, None, None, None
