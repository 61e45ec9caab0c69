"""A callback that logs the norms of gradients and activations, layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spdf_dist.config.errors import UserError
from spdf_dist.model.gpt import GPT
from spdf_dist.parallel.layout import shards_of, split_shards
from spdf_dist.training.callbacks import Callback, RunInfo, StepMetrics
from spdf_dist.training.engine import sum_of_squares


class Norms(Callback):
    """Logs norms every ``every`` steps. Other steps cost nothing.

    ``norm/gradient/TENSOR`` is the L2 norm of the gradient of a global tensor before clipping, over the kept entries of
    a sparse one. ``norm/activation/MODULE`` is the root mean square of the output of the embedding, of each layer and
    its attention and MLP, and of the last norm, over all positions of the global batch. Both are those of the whole
    model and batch at any number of tensor and data ranks. With ZeRO, the gradients are gathered one by one. A step
    whose update is skipped for its loss has no gradient norms.
    """

    every_rank = True

    def __init__(self, run: RunInfo, every: int = 100, gradients: bool = True, activations: bool = True) -> None:
        if not isinstance(every, int) or every < 1:
            raise UserError(f"callbacks.norms.every: must be 1 or more steps, got {every}")
        self.run, self.every = run, every
        self.gradients, self.activations = gradients, activations
        self.engine = run.engine
        self.hooks: list[Any] = []
        self.squares: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def before_step(self, step: int) -> None:
        if step % self.every == 0:
            if self.gradients:
                self.engine.before_update = self.look_at_gradients
            if self.activations:
                for name, module in modules_of(self.engine.model).items():
                    self.hooks.append(module.register_forward_hook(functools.partial(self.look_at_output, name)))

    def look_at_gradients(self) -> None:
        """Sum the squares of each tensor's gradient on this tensor rank; collective over the data ranks."""
        for parameter in self.engine.model.parameters():
            gradient = self.engine.full_gradient(parameter)
            for shard, part in split_shards(shards_of(parameter), gradient):
                if shard.dim is not None or self.run.groups.tensor_rank == 0:
                    self.add(f"gradient/{shard.name}", sum_of_squares(part), 1)

    def look_at_output(self, name: str, _module: Any, _inputs: Any, output: Any) -> None:
        """A forward hook: sum the squares of the output and count its elements."""
        if not self.engine.model.training:
            return
        y, bias = output if isinstance(output, tuple) else (output, None)
        if isinstance(bias, Tensor) and bias.dim() == 1:  # megatron-core returns the bias beside the output
            y = y + bias
        self.add(f"activation/{name}", sum_of_squares(y.detach()), y.numel())

    def add(self, name: str, square: Tensor, count: int) -> None:
        """Add to a sum of squares."""
        self.squares[name] = self.squares[name] + square if name in self.squares else square
        self.counts[name] = self.counts.get(name, 0) + count

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
        if metrics.step % self.every == 0:
            self.stop_looking()
            values = self.reduced()
            if self.run.groups.rank == 0:
                self.run.log(metrics.step, values)

    def on_end(self) -> None:
        self.stop_looking()

    def stop_looking(self) -> None:
        """Remove the hooks."""
        self.engine.before_update = None
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def reduced(self) -> dict[str, float]:
        """The norms of the whole model and batch, from one reduction over all ranks."""
        groups, model = self.run.groups, self.engine.model
        # All ranks need the same names. A rank may hold no part of a tensor.
        names = [f"activation/{name}" for name in modules_of(model)] if self.activations else []
        looked = any(name.startswith("gradient/") for name in self.squares)
        if self.gradients and groups.all_reduce_max(float(looked)):
            names += [f"gradient/{name}" for name in model.architecture.tensors]
        zero = torch.zeros((), dtype=torch.float64, device=groups.device)
        squares = torch.stack([self.squares.get(name, zero) for name in names]) if names else zero.reshape(1)[:0]
        counts = torch.tensor([self.counts.get(name, 0) for name in names], dtype=torch.float64, device=groups.device)
        # Each data rank holds the whole reduced gradient, but only its own activations.
        of_gradient = torch.tensor([name.startswith("gradient/") for name in names], device=groups.device)
        if groups.data_rank != 0:
            squares = torch.where(of_gradient, zero, squares)
        totals = torch.stack([squares, counts])
        if groups.world_size > 1:
            dist.all_reduce(totals)
        means = torch.where(of_gradient, totals[0], totals[0] / totals[1]).sqrt().tolist()
        self.squares, self.counts = {}, {}
        return {f"norm/{name}": value for name, value in zip(names, means, strict=True)}


def modules_of(model: GPT) -> dict[str, nn.Module]:
    """The modules whose outputs are measured, by name."""
    found = {"embedding": model.embedding}
    for index, layer in enumerate(model.decoder.layers):
        found |= {
            f"layers.{index}.attention": layer.self_attention,
            f"layers.{index}.mlp": layer.mlp,
            f"layers.{index}": layer,
        }
    return found | {"final_norm": model.decoder.final_layernorm}
