"""Masks that change during training: SET and RigL over the engine's sparse linears, in both executions.

After the optimizer's step each rank chooses the new masks of its own slices (see ``sparsity.update``). Values, masters
and moments move to the new masks. The gradient of pruned entries is computed only in steps that end with an update. It
is not part of the gradient norm or of clipping. Shapes: O outputs and I inputs of this rank.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from spdf_dist.checkpoint.manifest import MASKS
from spdf_dist.checkpoint.packed_masks import PackedMasks, pack, unpack
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.errors import SpdfError
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.gpt import sparse_linears
from spdf_dist.parallel.layout import TensorShard, shards_of
from spdf_dist.parallel.linear import ParallelLinear
from spdf_dist.sparsity.masks import BoolArray
from spdf_dist.sparsity.patterns import parse_pattern
from spdf_dist.sparsity.patterns.base import by_magnitude, in_blocks, magnitude_bits
from spdf_dist.sparsity.update import (
    at_random,
    drop_fraction_at,
    group_count,
    swap,
    update_steps,
)
from spdf_dist.training.engine import Engine, StepResult
from spdf_dist.training.training_state import TrainingState

RECORDS = ("first", "ever")
"""What a checkpoint stores beside each mask: the run's first mask, and the entries that any mask has kept so far."""


class DynamicMasks:
    """The masks of a run with ``sparsity.algorithm`` `set` or `rigl`. Every rank has one and makes the same calls."""

    def __init__(
        self,
        engine: Engine,
        model: ModelConfig,
        sparsity: SparsityConfig,
        clip_grad: float,
        total_steps: int,
        state: TrainingState,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """``checkpoint`` is the one that the run continues from. The updates are counted in ``state.mask_updates``."""
        self.engine, self.groups, self.state = engine, engine.groups, state
        self.sparsity, self.clip, self.total_steps = sparsity, clip_grad, total_steps
        self.steps = update_steps(sparsity, total_steps)
        self.stretches = group_count(model, sparsity) // self.groups.tensor_size
        self.block = parse_pattern(sparsity.pattern).block
        self.linears = [linear for _, linear in sparse_linears(engine.model)]
        self.shards = [shard for linear in self.linears for shard in shards_of(linear.weight) if shard.sparse]
        self.records: dict[str, dict[str, NDArray[np.uint8]]] = {}
        """Packed bits of this rank's slices, by record and name of the weight."""
        for record in RECORDS:
            self.records[record] = {
                shard.name: pack(self.stored(checkpoint, record, shard) if checkpoint else local_mask(shard))
                for shard in self.shards
            }

    def stored(self, checkpoint: Checkpoint, record: str, shard: TensorShard) -> BoolArray:
        """This rank's slice of a record in the checkpoint, bool."""
        whole = unpack(checkpoint.files.read(MASKS, f"{record}/{shard.name}"), (shard.shape[0], shard.shape[1]))
        return sliced(shard, whole)

    def before_step(self, step: int) -> None:
        """Make the linears collect dense gradients in a step that ends with an update of RigL."""
        if step in self.steps and self.sparsity.algorithm == "rigl":
            for linear in self.linears:
                linear.collect_gradient()

    def after_step(self, step: int, result: StepResult) -> dict[str, Any] | None:
        """Change the masks if an update is due, and return facts about it, the same on every rank; collective.

        A skipped step skips its update of the masks. Raises SpdfError if the data ranks chose different masks.
        """
        if step not in self.steps:
            return None
        gradients = [linear.take_gradient() for linear in self.linears]
        if result.skipped:
            return None
        number = self.state.mask_updates
        fraction = drop_fraction_at(self.sparsity, step, self.total_steps)
        norm = result.grad_norm
        clipped = self.clip / (norm + 1e-6) if self.clip and norm > self.clip else 1.0
        digest = 0
        flips = kept = overlap = ever = numel = 0
        for linear, gradient in zip(self.linears, gradients, strict=True):
            if gradient is not None:
                dist.all_reduce(gradient, group=self.groups.data_group)
                gradient *= clipped / self.groups.data_size
            old, new = self.update(linear, gradient, fraction, number)
            digest = zlib.crc32(np.packbits(new).tobytes(), digest)
            flips += int((old & ~new).sum())
        for shard in self.shards:
            mask, bits = local_mask(shard), self.records["ever"]
            seen = unpack(bits[shard.name], shard_shape(shard)) | mask
            bits[shard.name] = pack(seen)
            kept += int(mask.sum())
            overlap += int((mask & unpack(self.records["first"][shard.name], shard_shape(shard))).sum())
            ever += int(seen.sum())
            numel += mask.size
        self.check_agreement(digest)
        self.state.mask_updates += 1
        counts = torch.tensor([flips, kept, overlap, ever, numel], dtype=torch.float64, device=self.groups.device)
        dist.all_reduce(counts, group=self.groups.tensor_group)
        flips, kept, overlap, ever, numel = (int(count) for count in counts)
        return {
            "update": self.state.mask_updates,
            "drop_fraction": fraction,
            "flips": flips / kept,
            "overlap_with_first": overlap / kept,
            "ever_active": ever / numel,
            "level": 1 - kept / numel,
        }

    def check_agreement(self, digest: int) -> None:
        """Raise SpdfError on every rank unless all data ranks hold the same masks."""
        ends = torch.tensor([digest, -digest], dtype=torch.float64, device=self.groups.device)
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=self.groups.data_group)
        if self.groups.all_reduce_max(float(ends[0] + ends[1] != 0)):
            raise SpdfError("the data ranks computed different masks: their weights or gradients differ")

    def update(
        self, linear: ParallelLinear, gradient_OI: Tensor | None, fraction: float, number: int
    ) -> tuple[BoolArray, BoolArray]:
        """Choose the masks of the weights stacked in one linear and move its state to them.

        ``gradient_OI`` is None for SET. ``number`` counts the updates. Returns the old and the new mask, bool [O, I].
        """
        parameter, engine = linear.weight, self.engine
        old = linear.full_mask().clone()  # with `masked`, `set_mask` changes this buffer in place
        value = linear.expand(engine.full_parameter(parameter))
        moments = {key: linear.expand(engine.full_moment(parameter, key)) for key in engine.moments_of(parameter)}
        rows, row = [], 0
        for shard in shards_of(parameter):
            count = shard_shape(shard)[0]
            part = slice(row, row + count)
            row += count
            mask = old[part].cpu().numpy()
            if shard.sparse:
                gradient = None if gradient_OI is None else gradient_OI[part].cpu().numpy()
                mask = self.decide(shard, mask, value[part].cpu().numpy(), gradient, fraction, number)
            rows.append(mask)
        new = torch.from_numpy(np.concatenate(rows)).to(old.device)
        grown = new & ~old
        for tensor in (value, *moments.values()):
            tensor[~new | grown] = 0
        if self.sparsity.new_moments == "gradient" and "exp_avg_sq" in moments:
            second = moments["exp_avg_sq"]
            if gradient_OI is not None:
                estimate = torch.nan_to_num(gradient_OI, nan=0.0, posinf=0.0, neginf=0.0).square()
            else:
                estimate = (second.sum(1, keepdim=True) / (new & old).sum(1, keepdim=True).clamp(min=1)).expand_as(
                    second
                )
            second[grown] = estimate[grown]
        linear.set_mask(new)
        engine.load_parameter(parameter, linear.compress(value))
        for key, moment in moments.items():
            engine.load_moment(parameter, key, linear.compress(moment))
        return old.cpu().numpy(), new.cpu().numpy()

    def decide(
        self,
        shard: TensorShard,
        mask: BoolArray,
        weight: NDArray[np.float32],
        gradient: NDArray[np.float32] | None,
        fraction: float,
        number: int,
    ) -> BoolArray:
        """The next mask of this rank's slice of one weight, bool [out, in]."""
        block = self.block
        if gradient is not None:
            grow = by_magnitude(in_blocks(gradient, block))
        else:
            shape = (shard.shape[0] // block, shard.shape[1] // block)
            grow = sliced(shard, at_random(self.sparsity.seed, shard.name, number, shape), block)
        blocks = mask[::block, ::block]
        new = swap(blocks, magnitude_bits(in_blocks(weight, block)), grow, self.stretches, shard.dim or 0, fraction)
        return new if block == 1 else np.repeat(np.repeat(new, block, 0), block, 1)

    def masks(self) -> PackedMasks:
        """The current global masks on rank 0, empty on other ranks; collective."""
        return PackedMasks.pack(self.whole({shard.name: pack(local_mask(shard)) for shard in self.shards}))

    def stored_records(self) -> dict[str, NDArray[np.uint8]]:
        """The packed global records on rank 0, by the name in a checkpoint; empty on other ranks; collective."""
        found: dict[str, NDArray[np.uint8]] = {}
        for record in RECORDS:
            found |= {f"{record}/{name}": pack(mask) for name, mask in self.whole(self.records[record]).items()}
        return found

    def whole(self, bits: Mapping[str, NDArray[np.uint8]]) -> dict[str, BoolArray]:
        """Global bool arrays on rank 0, from the packed bits of every rank's slices; collective."""
        mine = {name: each.tobytes() for name, each in bits.items()} if self.groups.data_rank == 0 else {}
        parts = self.groups.gather(mine)
        if parts is None:
            return {}
        found = {}
        for shard in self.shards:
            slices = [unpack(np.frombuffer(part[shard.name], np.uint8), shard_shape(shard)) for part in parts if part]
            found[shard.name] = np.concatenate(slices, axis=shard.dim or 0) if shard.dim is not None else slices[0]
        return found


def shard_shape(shard: TensorShard) -> tuple[int, int]:
    """The shape [out, in] of this rank's slice of a matrix."""
    rows, columns = shard.local_shape
    return rows, columns


def local_mask(shard: TensorShard) -> BoolArray:
    """This rank's slice of the mask, bool [out, in]."""
    assert shard.mask is not None
    return shard.mask.cpu().numpy()


def sliced(shard: TensorShard, whole: Any, block: int = 1) -> Any:
    """This rank's slice of a global array [out / block, in / block]."""
    if shard.dim is None:
        return whole
    start, stop = shard.start // block, shard.stop // block
    return whole[start:stop] if shard.dim == 0 else whole[:, start:stop]
