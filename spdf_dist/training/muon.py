"""Muon: momentum with orthogonalised updates for the matrices of the layers, AdamW for all other parameters.

For a logical matrix W [m, n] with the clipped gradient G, momentum mu and the group's rate and decay:

    B <- mu B + (1 - mu) G
    O  = orthogonalise((1 - mu) G + mu B)
    W <- (1 - rate decay) W - rate 0.2 sqrt(max(m, n)) O

With the factor, an update has about the root mean square of AdamW's, so that both use one learning rate. A sparse
matrix is orthogonalised as the dense matrix that has zeros at its pruned entries, and the result is masked. Both
executions do this. `compressed` expands one matrix at a time.

Every matrix is orthogonalised whole. DeepSpeed divides the optimizer state as for AdamW, without regard to matrices. A
data rank orthogonalises the matrices that its partition touches. It receives the parts that other data ranks hold in
one all-to-all. The tensor ranks then divide these matrices: each assembles one from all shards, orthogonalises it and
returns the shards. At ZeRO stage 0 every data rank orthogonalises all matrices.

Sources: Jordan et al., Muon (2024, kellerjordan.github.io/posts/muon); the factor and the decay: Liu et al., Muon is
scalable for LLM training (2025, arXiv 2502.16982), section 2.2. DeepSpeed's own Muon treats a tensor rank's stacked
parameters as the matrices and takes no vectors of kept values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spdf_dist.accounting.flops import MUON_ITERATIONS
from spdf_dist.config.errors import SpdfError
from spdf_dist.parallel.groups import Groups
from spdf_dist.parallel.layout import TensorShard, shards_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic a x + b x^3 + c x^5, which drives singular values in (0, 1] towards 1."""
RMS = 0.2
"""Root mean square of the entries of an update of a dense matrix, relative to the learning rate."""
MIN_NORM = 1e-7


def orthogonalise(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """U p(S) V^T of ``matrix`` [m, n] = U S V^T, with p(S) between about 0.7 and 1.2; computed in ``dtype``.

    p is five Newton-Schulz iterations after a division by the Frobenius norm. Returns the dtype of ``matrix``.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=MIN_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(MUON_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


@dataclass(frozen=True)
class MatrixShard:
    """This tensor rank's slice of one logical matrix, and its place among the values of a parameter group."""

    tensor: TensorShard
    start: int
    """First of its values, counted over the group's parameters one after the other."""
    stop: int
    compressed: bool
    """Whether only the kept values are stored."""

    @property
    def scale(self) -> float:
        """The factor of the orthogonalised update."""
        return RMS * math.sqrt(max(self.tensor.shape))

    def expand(self, stored: Tensor) -> Tensor:
        """The dense slice [rows, columns] of stored values (1-D)."""
        mask = self.tensor.mask if self.compressed else None
        if mask is None:
            return stored.view(self.tensor.local_shape)
        dense = torch.zeros(self.tensor.local_shape, dtype=stored.dtype, device=stored.device)
        dense[mask] = stored
        return dense

    def compress(self, dense: Tensor) -> Tensor:
        """The stored values (1-D) of a dense slice. Pruned entries are dropped or set to zero."""
        mask = self.tensor.mask
        if mask is None:
            return dense.reshape(-1)
        return dense[mask] if self.compressed else torch.where(mask, dense, 0).view(-1)


def matrices_of(parameters: Sequence[nn.Parameter]) -> list[MatrixShard]:
    """The matrices in the parameters of a group."""
    found, at = [], 0
    for parameter in parameters:
        row = 1 if parameter.dim() == 1 else parameter.shape[1]
        for shard in shards_of(parameter):
            start = at + shard.offset * row
            found.append(MatrixShard(shard, start, start + shard.length * row, parameter.dim() == 1))
        at += parameter.numel()
    return found


Range = tuple[int, int]


def common(first: Range, second: Range) -> Range | None:
    """The intersection of two ranges; None if it is empty."""
    start, stop = max(first[0], second[0]), min(first[1], second[1])
    return (start, stop) if start < stop else None


class Division:
    """Who orthogonalises which matrices of a group, and the parts that the data ranks exchange for it; collective.

    ``partition`` is the number of values per data rank; None: every data rank holds all values of its tensor rank.
    """

    def __init__(self, shards: Sequence[MatrixShard], groups: Groups, partition: int | None) -> None:
        self.shards, self.groups = shards, groups
        if partition is None:
            self.mine = list(range(len(shards)))
            self.sent: list[list[tuple[int, Range]]] = []
            self.received: list[list[tuple[int, Range]]] = []
            return
        own = [(shard.start, shard.stop) for shard in shards]
        by_tensor_rank: list[list[Range]] = [own]
        if groups.tensor_size > 1:
            by_tensor_rank = [[] for _ in range(groups.tensor_size)]
            dist.all_gather_object(by_tensor_rank, own, group=groups.tensor_group)
        held = [(rank * partition, (rank + 1) * partition) for rank in range(groups.data_size)]
        # With compressed weights, a matrix may lie in other partitions on other tensor ranks.
        needed = [
            [j for j in range(len(shards)) if any(common(ranges[j], part) for ranges in by_tensor_rank)]
            for part in held
        ]
        self.mine = needed[groups.data_rank]

        def parts(matrices: list[int], holder: int) -> list[tuple[int, Range]]:
            return [(j, both) for j in matrices if (both := common(own[j], held[holder]))]

        every = range(groups.data_size)
        me = groups.data_rank
        self.sent = [parts(needed[rank], me) if rank != me else [] for rank in every]
        self.received = [parts(self.mine, rank) if rank != me else [] for rank in every]
        # All data ranks of a tensor rank know the same ranges, so that all of them find the same answer.
        if not any(parts(needed[rank], other) for rank in every for other in every if other != rank):
            self.sent = self.received = []

    def exchange(self, update: Held) -> dict[int, list[tuple[Range, Tensor]]]:
        """The parts of this rank's matrices that other data ranks hold, by matrix; collective."""
        if not self.sent:
            return {}
        given = [update.read(part) for parts in self.sent for _, part in parts]
        sizes = [sum(stop - start for _, (start, stop) in parts) for parts in self.received]
        flat = torch.cat(given) if given else update.empty(0)
        result = update.empty(sum(sizes))
        counts = [sum(stop - start for _, (start, stop) in parts) for parts in self.sent]
        dist.all_to_all_single(result, flat, sizes, counts, group=self.groups.data_group)
        found: dict[int, list[tuple[Range, Tensor]]] = {}
        at = 0
        for number, (start, stop) in itertools.chain(*self.received):
            found.setdefault(number, []).append(((start, stop), result[at : at + stop - start]))
            at += stop - start
        return found

    def orthogonalise(self, update: Held, dtype: torch.dtype) -> None:
        """Replace momentum by the scaled update of the weights, in place; collective."""
        foreign = self.exchange(update)
        for first in range(0, len(self.mine), self.groups.tensor_size):
            numbers = self.mine[first : first + self.groups.tensor_size]
            dense = []
            for number in numbers:
                shard = self.shards[number]
                stored = update.read((shard.start, shard.stop))
                for (start, stop), part in foreign.get(number, ()):
                    stored[start - shard.start : stop - shard.start] = part
                dense.append(shard.expand(stored))
            for number, result in zip(numbers, self.whole(numbers, dense, dtype), strict=True):
                shard = self.shards[number]
                update.write((shard.start, shard.stop), shard.compress(result).mul_(shard.scale))

    def whole(self, numbers: list[int], dense: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """This tensor rank's slices of at most one orthogonalised matrix per tensor rank; collective."""
        ranks = self.groups.tensor_size
        if ranks == 1:
            return [orthogonalise(matrix, dtype) for matrix in dense]
        sizes = [matrix.numel() for matrix in dense] + [0] * (ranks - len(dense))
        me, group = self.groups.tensor_rank, self.groups.tensor_group
        owned = [sizes[me]] * ranks  # the slices of a matrix have one size on all tensor ranks
        flat = torch.cat([matrix.reshape(-1) for matrix in dense])
        received = flat.new_empty(sum(owned))
        dist.all_to_all_single(received, flat, owned, sizes, group=group)
        if me < len(dense):
            dim, shape = self.shards[numbers[me]].tensor.dim or 0, dense[me].shape
            matrix = torch.cat([part.view(shape) for part in received.chunk(ranks)], dim)
            parts = orthogonalise(matrix, dtype).chunk(ranks, dim)
            received = torch.cat([part.reshape(-1) for part in parts])
        result = torch.empty_like(flat)
        dist.all_to_all_single(result, received, sizes, owned, group=group)
        return [part.view_as(matrix) for part, matrix in zip(result.split(sizes), dense, strict=False)]


class Held:
    """The values of a group that this rank holds: one partition, or every parameter. They are changed in place."""

    def __init__(self, tensors: Sequence[Tensor], start: int) -> None:
        self.parts: list[tuple[Range, Tensor]] = []
        for tensor in tensors:
            flat = tensor.view(-1)
            self.parts.append(((start, start + flat.numel()), flat))
            start += flat.numel()

    def inside(self, values: Range) -> Iterator[tuple[Range, Tensor]]:
        """The held parts of a range."""
        for (start, stop), tensor in self.parts:
            if both := common(values, (start, stop)):
                yield both, tensor[both[0] - start : both[1] - start]

    def read(self, values: Range) -> Tensor:
        """A copy of a range (1-D). Values that are not held are zero."""
        result = self.empty(values[1] - values[0]).zero_()
        for (start, stop), tensor in self.inside(values):
            result[start - values[0] : stop - values[0]] = tensor
        return result

    def write(self, values: Range, content: Tensor) -> None:
        """Set the held part of a range."""
        for (start, stop), tensor in self.inside(values):
            tensor.copy_(content[start - values[0] : stop - values[0]])

    def empty(self, count: int) -> Tensor:
        """An uninitialised vector."""
        return self.parts[0][1].new_empty(count)


class Muon(torch.optim.AdamW):
    """Muon for the groups whose key ``shards`` lists matrices, AdamW for the others.

    ``exp_avg`` of a matrix is its momentum. The step overwrites the gradients of matrices.
    """

    def __init__(
        self, parameters: list[dict[str, Any]], *, momentum: float, dtype: torch.dtype, groups: Groups, **adamw: Any
    ) -> None:
        """``dtype`` is that of the orthogonalisation. ``adamw`` are AdamW's arguments."""
        super().__init__(parameters, **adamw)
        self.momentum, self.dtype, self.groups = momentum, dtype, groups
        self.divisions: dict[int, Division] = {}

    def divide(self, partitioned: bool) -> None:
        """Decide which rank orthogonalises what, once the groups hold what this rank updates; collective."""
        for group in self.param_groups:
            if not group["shards"]:
                continue
            held = sum(parameter.numel() for parameter in group["params"])
            values = group["shards"][-1].stop
            if partitioned and not values <= held * self.groups.data_size < values + 4 * self.groups.data_size:
                raise SpdfError(f"training.optimizer=muon: DeepSpeed partitions {values} values in an unknown way")
            self.divisions[id(group)] = Division(group["shards"], self.groups, held if partitioned else None)
            group["start"] = self.groups.data_rank * held if partitioned else 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters of ``param_groups``, of which ZeRO passes one at a time; collective."""
        chosen = self.param_groups
        for group in chosen:
            if group["shards"]:
                self.step_matrices(group)
        self.param_groups = [group for group in chosen if not group["shards"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = chosen

    def step_matrices(self, group: dict[str, Any]) -> None:
        """Update the matrices of one group; collective."""
        for parameter in group["params"]:
            state = self.state[parameter]
            state["step"] += 1
            state["exp_avg"].lerp_(parameter.grad, 1 - self.momentum)
            parameter.grad.lerp_(state["exp_avg"], self.momentum)
        update = Held([parameter.grad for parameter in group["params"]], group["start"])
        self.divisions[id(group)].orthogonalise(update, self.dtype)
        for parameter in group["params"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(parameter.grad, alpha=-group["lr"])
