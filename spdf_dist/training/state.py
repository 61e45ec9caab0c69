"""Moves the engine's state to a checkpoint and back, at any topology and execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from spdf_dist.checkpoint.manifest import Kind
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import build
from spdf_dist.parallel.layout import TensorShard, join_shards, shards_of, split_shards
from spdf_dist.training.engine import Engine
from spdf_dist.training.training_state import TrainingState


def sharded_state(engine: Engine) -> Iterator[tuple[Kind, TensorShard, Tensor]]:
    """The slices, fp32, that this rank writes to a checkpoint.

    The slices of a tensor rank are divided among its data ranks. Tensor rank 0 writes what all tensor ranks hold.
    Every rank must consume the iterator to its end, because collectives gather master weights and moments.
    """
    groups, updated = engine.groups, engine.updates_done() > 0
    for number, parameter in enumerate(engine.model.parameters()):
        mine = number % groups.data_size == groups.data_rank
        contents: dict[Kind, Tensor] = {"model": engine.full_parameter(parameter)}
        if updated:
            for key in engine.moments_of(parameter):
                contents[key] = engine.full_moment(parameter, key)
        for kind, content in contents.items():
            if not mine:
                continue
            for shard, part in split_shards(shards_of(parameter), content):
                if shard.dim is not None or groups.tensor_rank == 0:
                    yield kind, shard, part


def load_training_state(checkpoint: Checkpoint) -> TrainingState:
    """The training state to continue from. A field that an older checkpoint lacks gets its default.

    Raises UserError if the state is damaged or belongs to another step.
    """
    try:
        state: TrainingState = build(TrainingState, checkpoint.manifest.state, "state")
    except UserError as error:
        raise UserError(f"{checkpoint.path}: its training state is not valid: {error}") from None
    if state.step != checkpoint.step:
        raise UserError(f"{checkpoint.path}: its training state is of step {state.step}, not {checkpoint.step}")
    return state


Read = Callable[[TensorShard, Kind], Tensor]
"""Reads a shard of a checkpoint's tensor, fp32: its slice or, if it has a mask, the kept values."""


def load_weights(engine: Engine, checkpoint: Checkpoint, read: Read | None = None) -> None:
    """Load the checkpoint's weights into the model and its masters. Each rank reads only its own slices."""
    for parameter in engine.model.parameters():
        engine.load_parameter(parameter, assemble(read or checkpoint.read_shard, parameter, "model"))


def load_moments(engine: Engine, checkpoint: Checkpoint, read: Read | None = None) -> None:
    """Load the checkpoint's optimizer state, if it has one. Raises UserError if it is another optimizer's."""
    updates = int((checkpoint.manifest.optimizer or {}).get("updates", 0))
    if updates == 0:
        return
    if checkpoint.optimizer != engine.name:
        raise UserError(
            f"{checkpoint.path} holds the state of training.optimizer={checkpoint.optimizer}, not {engine.name}"
        )
    engine.prepare_moments(updates)
    for parameter in engine.model.parameters():
        for key in engine.moments_of(parameter):
            engine.load_moment(parameter, key, assemble(read or checkpoint.read_shard, parameter, key))


def assemble(read: Read, parameter: Any, kind: Kind) -> Tensor:
    """A parameter's content, fp32 in the parameter's shape, from the checkpoint's slices."""
    shards = shards_of(parameter)
    contents = {shard.name: read(shard, kind) for shard in shards}
    value = torch.empty(parameter.shape, device=parameter.device)
    join_shards(shards, contents, value)
    return value
