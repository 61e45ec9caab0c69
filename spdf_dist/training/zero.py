"""The engine of ZeRO 0 to 2: DeepSpeed divides optimizer state and gradients among the data ranks."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from spdf_dist.accounting.memory import REDUCE_BUCKET
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import AnyConfig
from spdf_dist.model.gpt import GPT
from spdf_dist.parallel.groups import Groups, Mpu
from spdf_dist.parallel.uncompiled import uncompiled
from spdf_dist.training.engine import Engine, make_optimizer
from spdf_dist.training.muon import Muon
from spdf_dist.training.zero_update import Bf16Update, PartitionedUpdate

OWN_SETTINGS = {
    "optimizer": "training.lr, beta1, beta2, eps, weight_decay and optimizer",
    "scheduler": "training.warmup_tokens and min_lr_ratio",
    "train_batch_size": "training.global_batch_size",
    "fp16": "training.precision (fp32 or bf16)",
    "amp": "training.precision (fp32 or bf16)",
    "torch_autocast": "training.precision (fp32 or bf16)",
}
"""DeepSpeed's keys for settings that the config makes elsewhere. DeepSpeed would ignore some of them and fail on
others."""

BUCKET_UNIT = 512
"""Elements. DeepSpeed needs bucket sizes that divide into aligned parts."""


def deepspeed_settings(config: AnyConfig, data_size: int) -> dict[str, Any]:
    """DeepSpeed's settings for a config, with the user's own settings merged in.

    Raises UserError if these cannot be read or conflict with the config.
    """
    training, stage = config.training, config.parallel.zero_stage
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": training.global_batch_size // (training.micro_batch_size * data_size),
        "gradient_clipping": training.clip_grad,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }
    ours["data_types"] = {"grad_accum_dtype": "fp32"}
    ours["bf16"] = {"enabled": training.precision == "bf16"}
    if training.precision == "bf16":
        ours["bf16"]["check_grad_overflow"] = True
        ours["communication_data_type"] = "fp32"
    user = config.deepspeed
    if isinstance(user, str):
        try:
            user = json.loads(Path(user).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"deepspeed: cannot read {config.deepspeed}: {error}") from None
    if not isinstance(user, dict | None):
        raise UserError(f"deepspeed: expected keys and values, got a {type(user).__name__}")
    for key, instead in OWN_SETTINGS.items():
        if key in (user or {}):
            raise UserError(f"deepspeed.{key}: set {instead} instead")
    if training.optimizer == "muon":
        for key in ("offload_optimizer", "round_robin_gradients", "parameter_alignment"):
            if (user or {}).get("zero_optimization", {}).get(key):
                raise UserError(f"deepspeed.zero_optimization.{key}: training.optimizer=muon does not know this layout")
    merge_settings(ours, user or {}, "deepspeed")
    if stage == 0:  # stage 0 does not compute the norm in fp32; `Engine` computes it and clips
        ours["gradient_clipping"] = 0.0
    return ours


def merge_settings(ours: dict[str, Any], user: dict[str, Any], where: str) -> None:
    """Merge the user's settings into ours, in place. Raises UserError for a key with another value than ours."""
    for key, value in user.items():
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            merge_settings(ours[key], value, f"{where}.{key}")
        elif value == "auto":
            continue
        elif key in ours and ours[key] != value:
            raise UserError(f"{where}.{key}: {value!r} conflicts with {ours[key]!r}, which this config sets")
        else:
            ours[key] = value


class ZeroEngine(Engine):
    """DeepSpeed's engine with ZeRO 0, 1 or 2."""

    def __init__(self, model: GPT, config: AnyConfig, groups: Groups) -> None:
        super().__init__(model, config, groups)
        optimizer = make_optimizer(model, config.training, groups)
        if groups.device.type == "cpu":  # also on a machine with GPUs, where DeepSpeed would move the model to one
            deepspeed.accelerator.set_accelerator(CPU_Accelerator())
        # Without this DeepSpeed compiles inference collectives at its first start. Training never calls them.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed(verbose=False)
        settings = deepspeed_settings(config, groups.data_size)
        # DeepSpeed allocates whole buckets. Its default is 2 GB of fp32, also for a model of a few kilobytes.
        elements = -(-sum(parameter.numel() for parameter in model.parameters()) // BUCKET_UNIT) * BUCKET_UNIT
        for bucket in ("reduce_bucket_size", "allgather_bucket_size"):
            settings["zero_optimization"].setdefault(bucket, max(BUCKET_UNIT, min(REDUCE_BUCKET, elements)))
        try:
            # DeepSpeed's bf16 optimizer prints memory reports. The first call imports its Muon optimizer.
            with contextlib.redirect_stdout(io.StringIO()), uncompiled():
                self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, mpu=Mpu())
        except Exception as error:  # DeepSpeed raises many kinds for settings that are unknown or do not fit together
            if not config.deepspeed:
                raise
            what = " ".join(str(error).split())[:300]
            raise UserError(f"deepspeed: its settings are not accepted: {type(error).__name__}: {what}") from None
        if self.stage == 0 and groups.data_size == 1 and not isinstance(self.deepspeed.optimizer, BF16_Optimizer):
            # DeepSpeed would copy all gradients into a buffer and back, although there is no other rank.
            self.deepspeed.enable_backward_allreduce = False
        self.training_model: nn.Module = self.deepspeed
        self.parts = {parameter: parameter for parameter in model.parameters()}
        self.optimizer: torch.optim.AdamW = self.deepspeed.basic_optimizer
        if isinstance(self.optimizer, Muon):
            self.optimizer.divide(partitioned=self.stage > 0)
        reduce_gradients = self.deepspeed.allreduce_gradients
        # The instance's attribute replaces the method, which DeepSpeed calls within its backward pass.
        self.deepspeed.allreduce_gradients = self.phases.timed("reduce", reduce_gradients)
        if self.stage:
            inner = self.deepspeed.optimizer
            update = Bf16Update if isinstance(inner, BF16_Optimizer) else PartitionedUpdate
            self.zero_update: Bf16Update | PartitionedUpdate = update(inner, self.clip, groups)
        # DeepSpeed links parameters to their moments after the first group's first update, when the second group has no
        # moments yet. With the state created here, every group is linked.
        self.prepare_moments(0)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(last)
        # By default DeepSpeed also averages over micro-batches.
        self.deepspeed.backward(loss, scale_wrt_gas=False)
        if not last:
            self.deepspeed.step()

    def gradient_norm(self) -> Tensor:
        if self.stage:
            return self.zero_update.gradient_norm()
        return self.norm_of_parts(self.groups.tensor_group)

    def update(self, norm: float) -> None:
        if self.stage == 0:
            self.clip_parts(norm)
        self.deepspeed.step()

    def drop_gradients(self) -> None:
        optimizer = self.deepspeed.optimizer
        optimizer.zero_grad(set_to_none=True)
        if isinstance(optimizer, BF16_Optimizer):
            optimizer.clear_hp_grads()
        for held in (getattr(optimizer, "averaged_gradients", {}), getattr(optimizer, "all_grad_tensors", {})):
            for key in held:
                held[key] = None
        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID  # else the next step adds to the gradients in host memory
        self.deepspeed.micro_steps += 1

    def full_parameter(self, parameter: nn.Parameter) -> Tensor:
        master = safe_get_full_fp32_param(parameter) if self.stage else None
        return parameter.detach().float() if master is None else master

    def full_gradient(self, parameter: nn.Parameter) -> Tensor:
        gradient = None
        if self.stage and parameter.numel() > 0:  # a parameter without elements is not mapped
            gradient = parameter.get_full_hp_grad()  # type: ignore[attr-defined]
        elif not self.stage:
            gradient = safe_get_full_grad(parameter)
        return torch.zeros_like(parameter) if gradient is None else gradient

    def full_moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        if self.stage == 0:
            return self.optimizer.state[parameter][key]
        if parameter.numel() == 0:  # a slice without kept values, which DeepSpeed does not map
            return torch.zeros_like(parameter, dtype=torch.float32)
        moment: Tensor = safe_get_full_optimizer_state(parameter, key)
        return moment

    @torch.no_grad()
    def load_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.copy_(value)
        if self.stage:
            safe_set_full_fp32_param(parameter, value)

    @torch.no_grad()
    def prepare_moments(self, updates: int) -> None:
        super().prepare_moments(updates)
        if self.stage:
            self.deepspeed.optimizer._hp_optimizer_states_linked = False
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    @torch.no_grad()
    def load_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self.stage == 0:
            self.optimizer.state[parameter][key].copy_(value)
        elif parameter.numel() > 0:
            safe_set_full_optimizer_state(parameter, value, key)
