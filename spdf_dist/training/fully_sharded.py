"""The engine of ZeRO stage 3: torch's FSDP2 also divides the parameters among the data ranks.

Each data rank keeps a slice of every parameter along its first dimension, in fp32, with its gradient and moments. A
layer's parameters are gathered for its forward and its backward pass, in the training precision, and freed after each.
The embeddings, the output layer and the last norm are gathered for the whole forward and backward pass. Gradients are
reduced in fp32 after every micro-batch. Tensor ranks divide the matrices first. Each has its own group of data ranks.

FSDP2 frees the storage of gathered parameters, so that views of them, which autograd keeps, hold no memory. DeepSpeed's
stage 3 replaces the parameters' tensors. Views, as of a masked weight, would then keep the gathered weights until the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from spdf_dist.config.schema import AnyConfig
from spdf_dist.data.labels import IGNORED
from spdf_dist.model.gpt import GPT
from spdf_dist.parallel.groups import Groups
from spdf_dist.parallel.linear import ParallelLinear
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.engine import Engine, dtype_of, make_optimizer

ATTRIBUTES = ("shards", "tensor_model_parallel")
"""Attributes of a model's parameters that its sharded parameters take over."""


def shard(model: GPT, groups: Groups, dtype: torch.dtype) -> None:
    """Divide the parameters of an fp32 model on the CPU among the data ranks, layer by layer, in place; collective.

    A rank's device never holds more than the slices and one layer, or the embeddings. ``dtype`` is that of the gathered
    parameters.
    """
    attributes = {
        name: {key: getattr(parameter, key) for key in ATTRIBUTES} for name, parameter in model.named_parameters()
    }
    mesh = DeviceMesh.from_group(groups.data_group, groups.device.type)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.decoder.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for name, parameter in model.named_parameters():
        for key, value in attributes[name].items():
            setattr(parameter, key, value)
    for module in model.modules():
        if isinstance(module, ParallelLinear):
            module.move_pattern(groups.device)


def local(parameter: Tensor) -> Tensor:
    """This rank's slice of a sharded tensor, which shares its memory."""
    assert isinstance(parameter, DTensor)
    slice_: Tensor = parameter.to_local()
    return slice_


class FullyShardedEngine(Engine):
    """FSDP2 over the data ranks, with torch's AdamW on each rank's slices."""

    optimizer: torch.optim.AdamW

    def __init__(self, model: GPT, config: AnyConfig, groups: Groups) -> None:
        """``model`` is on the CPU with fp32 parameters."""
        super().__init__(model, config, groups)
        shard(model, groups, dtype_of(config.training.precision))
        self.training_model = model
        self.parts = {parameter: nn.Parameter(local(parameter.detach())) for parameter in model.parameters()}
        self.optimizer = make_optimizer(model, config.training, groups)
        for group in self.optimizer.param_groups:
            group["params"] = [self.parts[parameter] for parameter in group["params"]]
        self.prepare_moments(0)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()  # every pass reduces its gradients, so that no rank holds whole ones

    def gradient_norm(self) -> Tensor:
        for parameter, part in self.parts.items():
            part.grad = None if parameter.grad is None else local(parameter.grad)
        return self.norm_of_parts(ranks=None)

    def update(self, norm: float) -> None:
        self.clip_parts(norm)
        self.optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        for parameter, part in self.parts.items():
            parameter.grad = part.grad = None

    def evaluate(self, batches: Iterable[MicroBatch], stop: Callable[[], bool]) -> float | None:
        result = super().evaluate(self.in_step(batches), stop)
        self.model.reshard()  # without a backward pass, the embeddings stay gathered
        return result

    def in_step(self, batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """The batches, followed by empty ones until every rank has had its last, because gathering is collective."""
        remaining = iter(batches)
        while True:
            batch = next(remaining, None)
            if not self.groups.all_reduce_max(float(batch is not None)):
                return
            if batch is None:
                tokens = torch.zeros(1, self.model.architecture.model.seq_length, dtype=torch.int64)
                tokens = tokens.to(self.groups.device)
                batch = MicroBatch(tokens, torch.full_like(tokens, IGNORED), 0)
            yield batch

    def first_non_finite(self, batches: Sequence[MicroBatch]) -> str:
        found = super().first_non_finite(batches)
        self.model.reshard()
        return found

    def full_parameter(self, parameter: nn.Parameter) -> Tensor:
        return self.whole(parameter, self.parts[parameter].detach())

    def full_gradient(self, parameter: nn.Parameter) -> Tensor:
        gradient = parameter.grad
        return self.whole(parameter, torch.zeros_like(self.parts[parameter]) if gradient is None else local(gradient))

    def full_moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        return self.whole(parameter, self.optimizer.state[self.parts[parameter]][key])

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        """All data ranks' slices of a tensor that is divided as ``parameter`` is; collective."""
        assert isinstance(parameter, DTensor)
        mesh, placements = parameter.device_mesh, parameter.placements
        stride = parameter.stride()
        sharded = DTensor.from_local(part, mesh, placements, run_check=False, shape=parameter.shape, stride=stride)
        full: Tensor = sharded.full_tensor()
        return full

    def own_slice(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's slice of a whole tensor, which every data rank has."""
        assert isinstance(parameter, DTensor)
        value = value.to(self.groups.device)
        return local(distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None))

    @torch.no_grad()
    def load_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        self.parts[parameter].copy_(self.own_slice(parameter, value))

    @torch.no_grad()
    def load_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        self.optimizer.state[self.parts[parameter]][key].copy_(self.own_slice(parameter, value))
