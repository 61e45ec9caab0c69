"""The gradient norm, clipping and update of DeepSpeed's ZeRO optimizers, without a read of a value on the device.

DeepSpeed's own steps read the norm, an overflow flag, and the norm again for each parameter group. Here the norm stays
on the device; `Engine` reads it together with the loss. The arithmetic is DeepSpeed's (version 0.19.8).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from spdf_dist.parallel.groups import Groups


def sum_of_squared_norms(
    gradients: Iterable[tuple[nn.Parameter, Tensor]], dtype: torch.dtype, groups: Groups
) -> Tensor:
    """The sum of the squared norms of this rank's gradients, an fp32 scalar.

    A parameter that all tensor ranks hold counts only on the first. ``dtype`` is that of the norms and of their sum.
    """
    counted = [
        gradient
        for parameter, gradient in gradients
        if parameter.tensor_model_parallel or groups.tensor_rank == 0  # type: ignore[attr-defined]
    ]
    if not counted:
        return torch.zeros((), device=groups.device)
    return torch.stack(torch._foreach_norm(counted, 2.0, dtype=dtype)).pow(2.0).sum().float()


class PartitionedUpdate:
    """The update of DeepSpeed's optimizer for ZeRO 2, and for ZeRO 1 in fp32: each data rank holds parts of gradients.

    DeepSpeed's step calls the methods ``check_overflow``, ``scaled_global_norm`` and ``unscale_and_clip_grads``, which
    are replaced.
    """

    def __init__(self, optimizer: DeepSpeedZeroOptimizer, clip: float, groups: Groups) -> None:
        """``clip`` is the norm above which the gradients are scaled down to it; 0: never."""
        self.optimizer, self.limit, self.groups = optimizer, clip, groups
        self.norm_of_offloaded = optimizer.scaled_global_norm
        optimizer.check_overflow = lambda partition_gradients=True: None
        optimizer.scaled_global_norm = lambda norm_type=2: 0.0  # the step only checks that it is finite
        optimizer.unscale_and_clip_grads = self.clip

    def gradient_norm(self) -> Tensor:
        """L2 norm of the reduced gradients, an fp32 scalar on the device, not finite if a gradient is not; collective.

        It must be called before each step of the optimizer, which uses it.
        """
        optimizer, groups = self.optimizer, self.groups
        if optimizer.cpu_offload:  # DeepSpeed reads the norm of each parameter on the host
            optimizer._wait_for_offload_copies()
            self.norm: Tensor = self.norm_of_offloaded()
            return self.norm
        norms = []
        for index, parameters in enumerate(optimizer.params_in_partition):
            gradients = (part for part in optimizer.averaged_gradients[index] if not hasattr(part, "_zero_padding"))
            square = sum_of_squared_norms(zip(parameters, gradients, strict=False), torch.float64, groups)
            dist.all_reduce(square, group=groups.data_group)
            if groups.tensor_size > 1:
                dist.all_reduce(square, group=groups.tensor_group)
            norms.append(square.pow(0.5))
        self.norm = torch.linalg.vector_norm(torch.stack(norms))
        return self.norm

    def clip(self, gradients: list[Tensor], _norm: Any) -> None:
        """Scale the gradients of a group in place."""
        if self.limit:
            scale = 1.0 / torch.clamp((self.norm + 1e-6) / self.limit, min=1.0)
            for gradient in gradients:
                gradient.mul_(scale)


class Bf16Update:
    """The update of DeepSpeed's optimizer for ZeRO 1 in bf16: each data rank holds all reduced gradients in fp32.

    It replaces DeepSpeed's step and its accumulation of gradients, which launch more operations per parameter.
    """

    def __init__(self, optimizer: BF16_Optimizer, clip: float, groups: Groups) -> None:
        """``clip`` is the norm above which the gradients are scaled down to it; 0: never."""
        self.optimizer, self.limit, self.groups = optimizer, clip, groups
        optimizer.step = self.step
        optimizer.update_hp_grads = self.add_gradients
        # DeepSpeed zeroes the bf16 gradients, to which autograd then adds. Autograd stores the first gradient instead.
        optimizer.backward_prologue = lambda: optimizer.clear_lp_grads(set_to_none=True)

    @torch.no_grad()
    def add_gradients(self, clear_lp_grads: bool = False) -> None:
        """Add the bf16 gradients of a micro-batch to the fp32 gradients."""
        optimizer = self.optimizer
        if optimizer.immediate_grad_update:  # DeepSpeed's hooks have done it in the backward pass
            return
        for parameters, sums, present in zip(
            optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients, strict=True
        ):
            found = [index for index, parameter in enumerate(parameters) if parameter.grad is not None]
            if not found:
                continue
            gradients = [parameters[index].grad.view(-1) for index in found]
            torch._foreach_add_([sums[index] for index in found], gradients)
            for index in found:
                parameters[index]._hp_grad = sums[index]
                present[index] = True
            if clear_lp_grads:
                torch._foreach_zero_(gradients)

    def gradient_norm(self) -> Tensor:
        """As `PartitionedUpdate.gradient_norm`."""
        optimizer = self.optimizer
        gradients = (
            (parameter, gradient)
            for parameters, group, present in zip(
                optimizer.bf16_groups,
                optimizer.fp32_groups_gradients,
                optimizer.fp32_groups_has_gradients,
                strict=True,
            )
            for parameter, gradient, has in zip(parameters, group, present, strict=True)
            if has
        )
        square = sum_of_squared_norms(gradients, torch.float32, self.groups)
        if self.groups.tensor_size > 1:
            dist.all_reduce(square, group=self.groups.tensor_group)
        self.norm = square.pow(0.5)
        return self.norm

    @torch.no_grad()
    def step(self) -> None:
        """Clip this rank's part of the gradients, update its part of the fp32 weights, and gather the bf16 weights."""
        optimizer = self.optimizer
        parts = optimizer.fp32_groups_gradient_flat_partition
        if self.limit:
            scale = torch.clamp(self.limit / (self.norm + 1e-6), max=1.0)
            for gradient in parts:
                gradient.mul_(scale)
        for weights, gradient in zip(optimizer.fp32_groups_flat_partition, parts, strict=True):
            weights.grad = gradient
        optimizer.optimizer.step()
        optimizer.update_lp_params()
        optimizer.clear_hp_grads()
