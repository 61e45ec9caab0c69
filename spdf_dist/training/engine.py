"""Runs a model, one optimizer step at a time: forward, backward, clipping, update, and access to the whole state.

What all engines share is here. `zero.py` has the engine of ZeRO 0 to 2, `fully_sharded.py` that of stage 3.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spdf_dist.checkpoint.manifest import Kind
from spdf_dist.config.errors import NonFiniteError, UserError
from spdf_dist.config.schema import AnyConfig, OptimizationConfig
from spdf_dist.data.labels import IGNORED
from spdf_dist.model.gpt import GPT
from spdf_dist.parallel.groups import Groups
from spdf_dist.parallel.layout import shards_of
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.muon import Muon, matrices_of
from spdf_dist.training.phase_times import PhaseTimes

MOMENTS: tuple[Kind, ...] = ("exp_avg", "exp_avg_sq")

NORM_ROW = 1024
"""Number of elements whose squares are summed in fp32; see `sum_of_squares`."""


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step, the same on every rank."""

    loss: float
    """Mean over the global batch's target tokens, in nats per token."""
    grad_norm: float
    """L2 norm before clipping; NaN if the loss was above its limit."""
    stop: bool
    """Whether any rank was asked to stop."""
    still_saving: bool
    """Whether any rank's thread is still writing a checkpoint."""
    skipped: bool
    """Whether the update was skipped because the loss or the gradient norm was above its limit."""


def parameter_groups(
    model: GPT, weight_decay: float, embedding_lr: float = 1.0, optimizer: str = "adamw"
) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: those with weight decay first, each with its own decay and learning rate.

    ``lr_scale`` of a group multiplies the step's learning rate. The standard parameterization has two groups, or three
    with an ``embedding_lr`` other than 1. With `muon`, the matrices of the layers are groups of their own, whose
    ``shards`` describe them. ``shards`` of the other groups is empty.

    Raises:
        UserError: the weights that one parameter stacks have different rules.
    """
    tensors = model.architecture.tensors
    groups: dict[tuple[bool, float, float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        shards = shards_of(parameter)
        rule, tensor = model.rules[shards[0].name], tensors[shards[0].name]
        for shard in shards[1:]:
            if model.rules[shard.name] != rule:
                raise UserError(
                    f"sparsity.levels: {shards[0].name} and {shard.name} are one parameter and need one density with "
                    "training.parameterization=supar"
                )
        lr = rule.lr * (embedding_lr if tensor.role == "embedding" else 1.0)
        decay = weight_decay * rule.decay if tensor.decays else 0.0
        orthogonalised = optimizer == "muon" and tensor.is_hidden_matrix
        groups.setdefault((not tensor.decays, lr, decay, orthogonalised), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: group[0][0])
    return [
        {
            "params": params,
            "weight_decay": decay,
            "lr_scale": lr,
            "shards": matrices_of(params) if orthogonalised else [],
        }
        for (_, lr, decay, orthogonalised), params in ordered
    ]


def sum_of_squares(x: Tensor) -> Tensor:
    """The sum of the squares of all elements, a float64 scalar with a relative error of about 1e-6.

    Rows of ``NORM_ROW`` elements are summed in fp32 and the row sums in fp64. One fp32 sum over a whole embedding is
    too inaccurate, and converting each element to fp64 first is slow.
    """
    whole = x.numel() // NORM_ROW * NORM_ROW
    rows, rest = x.reshape(-1)[:whole].view(-1, NORM_ROW), x.reshape(-1)[whole:]
    norms = torch.linalg.vector_norm(rows.float(), dim=1), torch.linalg.vector_norm(rest.float())
    return norms[0].double().square().sum() + norms[1].double().square()


def is_finite(value: Any) -> bool:
    """Whether all elements of a tensor, or of the tensors in a tuple, are finite."""
    if isinstance(value, tuple):
        return all(map(is_finite, value))
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of weights and activations with ``training.precision``. Master weights are always float32."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def make_optimizer(model: GPT, training: OptimizationConfig, groups: Groups) -> torch.optim.AdamW:
    """The optimizer ``training.optimizer``, before DeepSpeed divides its groups."""
    embedding_lr = getattr(training, "embedding_lr_multiplier", 1.0)
    parameters = parameter_groups(model, training.weight_decay, embedding_lr, training.optimizer)
    adamw: dict[str, Any] = {
        "lr": training.lr,
        "betas": (training.beta1, training.beta2),
        "eps": training.eps,
        "fused": True,
    }
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **adamw)
    dtype = dtype_of(training.precision)
    return Muon(parameters, momentum=training.muon_momentum, dtype=dtype, groups=groups, **adamw)


class Engine(ABC):
    """A model with its optimizer: optimizer steps, evaluation, and access to the whole state by parameter."""

    optimizer: torch.optim.Optimizer
    training_model: nn.Module
    """The model for passes with a backward pass, which may have hooks of a library."""
    parts: dict[nn.Parameter, nn.Parameter]
    """The part of each parameter that this rank holds, with the gradient of the part."""

    def __init__(self, model: GPT, config: AnyConfig, groups: Groups) -> None:
        self.model = model
        self.groups = groups
        self.stage = config.parallel.zero_stage
        self.clip = config.training.clip_grad
        self.name = config.training.optimizer
        self.phases = PhaseTimes(groups.device)
        self.before_update: Callable[[], None] | None = None
        """Called in each step when the gradients are reduced, before they are clipped and applied."""

    def step(
        self,
        batches: Sequence[MicroBatch],
        target_tokens: int,
        lr: float,
        *,
        stop_requested: bool = False,
        still_saving: bool = False,
        loss_limit: float = math.inf,
        norm_limit: float = math.inf,
        after_pass: Callable[[int], None] = lambda done: None,
    ) -> StepResult:
        """Run one optimizer step over this rank's micro-batches of a global batch with ``target_tokens`` in all.

        The update is skipped if the mean loss is above ``loss_limit`` or the gradient norm above ``norm_limit``.
        ``after_pass`` is called with the number of micro-batches done.

        Raises:
            NonFiniteError: the loss or the gradient is not finite. It is raised on every rank, before the update, and
                names the first tensor that is not finite.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.groups.device)
        self.phases.begin_step()
        for number, batch in enumerate(batches, 1):
            torch.manual_seed(batch.dropout_seed)
            with self.phases.phase("forward"):
                loss: Tensor = self.training_model(batch.tokens_BT, batch.labels_BT)
            loss_sum += loss.detach()
            # The data ranks average the gradients. A step needs their sum over the global batch, divided by its target
            # tokens.
            with self.phases.phase("backward"):
                self.backward(loss * (self.groups.data_size / target_tokens), last=number == len(batches))
            after_pass(number)
        # A number becomes a tensor by `full`, which launches a kernel. `torch.tensor` would wait for the device.
        flags = (torch.full_like(loss_sum, float(flag)) for flag in (stop_requested, still_saving))
        totals = torch.stack([loss_sum, *flags])
        dist.all_reduce(totals)
        with self.phases.phase("update"):
            values = torch.cat([totals, self.gradient_norm().double().reshape(1)])
        # The host waits for the device here, and nowhere else in the step.
        whole_loss, stops, saves, norm = values.tolist()
        mean_loss = whole_loss / self.groups.tensor_size / target_tokens
        stop, saving = stops > 0, saves > 0
        if not math.isfinite(mean_loss):
            raise NonFiniteError(f"the loss is {mean_loss}; the update was not made{self.first_non_finite(batches)}")
        if mean_loss > loss_limit:
            self.drop_gradients()
            return StepResult(mean_loss, math.nan, stop, saving, skipped=True)
        if self.before_update is not None:
            self.before_update()
        if not math.isfinite(norm):
            where = self.first_non_finite(batches)
            raise NonFiniteError(f"the gradient norm is {norm}; the update was not made{where}")
        skipped = norm > norm_limit
        with self.phases.phase("update"):
            if skipped:
                self.drop_gradients()
            else:
                self.update(norm)
        return StepResult(mean_loss, norm, stop, saving, skipped)

    @abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of ``loss``, averaged over the data ranks, to those of the step; collective.

        ``last``: it is the last micro-batch of the step.
        """

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """L2 norm of the reduced gradients, a scalar on the device, not finite if a gradient is not; collective."""

    @abstractmethod
    def update(self, norm: float) -> None:
        """Clip the accumulated gradients, whose norm is ``norm``, and apply them; collective."""

    @abstractmethod
    def drop_gradients(self) -> None:
        """Discard the accumulated gradients instead of applying them."""

    @torch.no_grad()
    def first_non_finite(self, batches: Sequence[MicroBatch]) -> str:
        """The first weight, module output or gradient that is not finite, as text to append; collective.

        Every rank repeats the forward passes of the step and checks the output of each module.
        """
        named = [(shards_of(parameter)[0].name, parameter) for parameter in self.model.parameters()]
        found = [f"the weight {name}" for name, parameter in named if not is_finite(self.parts[parameter])]

        def look(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            if not is_finite(output):
                found.append(f"the output of {name}")

        modules = [(name, module) for name, module in self.model.named_modules() if name]
        hooks = [module.register_forward_hook(functools.partial(look, name)) for name, module in modules]
        for batch in batches:
            torch.manual_seed(batch.dropout_seed)
            self.model(batch.tokens_BT, batch.labels_BT)
        for hook in hooks:
            hook.remove()
        found += [f"the gradient of {name}" for name, p in reversed(named) if not is_finite(self.full_gradient(p))]
        first = next((names[0] for names in self.groups.allgather(found) if names), "")
        return f"; first not finite: {first}" if first else ""

    def norm_of_parts(self, ranks: dist.ProcessGroup | None) -> Tensor:
        """L2 norm of the reduced gradients of ``parts``, a scalar on the device, fp64; collective.

        ``ranks`` divide the gradients; None: all ranks. A parameter that all tensor ranks hold counts only once.
        """
        gradients = [
            part.grad
            for parameter, part in self.parts.items()
            if part.grad is not None and (parameter.tensor_model_parallel or self.groups.tensor_rank == 0)  # type: ignore[attr-defined]
        ]
        square = torch.zeros((), dtype=torch.float64, device=self.groups.device)
        if square.is_cuda and gradients:  # few launches; fp64 is slow on CPUs only
            square = torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float64)).square().sum()
        else:
            for gradient in gradients:
                square += sum_of_squares(gradient)
        if dist.get_world_size(ranks) > 1:
            dist.all_reduce(square, group=ranks)
        return square.sqrt()

    def clip_parts(self, norm: float) -> None:
        """Scale the gradients of ``parts`` so that a norm above ``training.clip_grad`` becomes that."""
        gradients = [part.grad for part in self.parts.values() if part.grad is not None]
        if self.clip and norm + 1e-6 > self.clip and gradients:
            torch._foreach_mul_(gradients, self.clip / (norm + 1e-6))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[MicroBatch], stop: Callable[[], bool]) -> float | None:
        """The mean unsmoothed loss over all data ranks' batches, in nats per target token; collective.

        ``stop()`` is called before each batch. The result is None if it returned true on any rank.
        """
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.groups.device)
        for batch in batches:
            if stop():
                sums[2] = 1
                # Tensor ranks, and at stage 3 data ranks, need one another until the batches end.
                if self.groups.tensor_size == 1 and self.stage < 3:
                    break
            sums[0] += self.model(batch.tokens_BT, batch.labels_BT)
            sums[1] += (batch.labels_BT != IGNORED).sum()
        dist.all_reduce(sums)
        return None if sums[2] > 0 else float(sums[0] / sums[1])

    def moments_of(self, parameter: nn.Parameter) -> tuple[Kind, ...]:
        """The moments that the optimizer keeps of a parameter. Muon keeps only ``exp_avg`` of a matrix."""
        tensor = self.model.architecture.tensors[shards_of(parameter)[0].name]
        return MOMENTS[:1] if self.name == "muon" and tensor.is_hidden_matrix else MOMENTS

    def updates_done(self) -> int:
        """The step count of the optimizer: the number of updates made."""
        counts = {int(state["step"]) for state in self.optimizer.state.values()}
        return max(counts, default=0)

    @abstractmethod
    def full_parameter(self, parameter: nn.Parameter) -> Tensor:
        """This tensor rank's fp32 master weights of a parameter; collective over the data ranks."""

    @abstractmethod
    def full_gradient(self, parameter: nn.Parameter) -> Tensor:
        """This tensor rank's reduced gradient of a parameter before the update; collective over the data ranks."""

    @abstractmethod
    def full_moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        """This tensor rank's moment ``key`` of a parameter, fp32; collective over the data ranks."""

    @abstractmethod
    def load_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Copy an fp32 value into the parameter and its master weights."""

    @torch.no_grad()
    def prepare_moments(self, updates: int) -> None:
        """Create the optimizer's state with a step count of ``updates`` and moments of zero."""
        for group in self.optimizer.param_groups:
            for part in group["params"]:
                self.optimizer.state[part] = {
                    "step": torch.tensor(float(updates), device=part.device),
                    **{key: torch.zeros_like(part) for key in MOMENTS[: 1 if group["shards"] else 2]},
                }

    @abstractmethod
    def load_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Copy an fp32 value into the moment ``key`` of a parameter."""
