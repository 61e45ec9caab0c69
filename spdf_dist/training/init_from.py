"""Pre-training that starts from another checkpoint: from its weights, and from the state that is not reset.

Weights are used where the new mask keeps them. Entries that the checkpoint had pruned start at zero. Unless
``training.reset`` names it, this state continues:

    optimizer   the moments and step count; moments of entries that were pruned start at zero
    schedule    the run's steps, and so the learning rate, from the checkpoint's consumed tokens
    data        the batches, from where the checkpoint's run stopped reading
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from torch import Tensor

from spdf_dist.checkpoint.manifest import KINDS, Kind
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.budget import tokens_per_step, total_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.model.parameterization import of_training
from spdf_dist.parallel.layout import TensorShard
from spdf_dist.sparsity.assignment import sparse_weights
from spdf_dist.sparsity.masks import RandomMasks, logical_weights
from spdf_dist.sparsity.patterns.stored import LEVEL_TOLERANCE
from spdf_dist.training.engine import Engine
from spdf_dist.training.state import Read, load_moments, load_training_state, load_weights
from spdf_dist.training.training_state import TrainingState


def check_function(checkpoint: Checkpoint, config: PretrainConfig) -> None:
    """Raise UserError if the run's multipliers would change the function that the checkpoint's weights compute."""
    theirs, ours = checkpoint.parameterization, of_training(config.training)
    if theirs.multipliers(config.model) == ours.multipliers(config.model):
        return
    differing = [f.name for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)]
    key = differing[0]
    raise UserError(
        f"training.{key}: {checkpoint.path} was trained with {getattr(theirs, key)}, not {getattr(ours, key)}; its "
        "weights mean something else with other multipliers"
    )


def through_masks(checkpoint: Checkpoint) -> Read:
    """A reader of shards that selects the kept values by the shard's own mask, whatever the checkpoint's mask is."""

    def read(shard: TensorShard, kind: Kind) -> Tensor:
        dense = checkpoint.read_shard(replace(shard, mask_source=None), kind)
        mask = shard.mask
        return dense if mask is None else dense[mask.cpu()]

    return read


class Origin:
    """The checkpoint that a run starts from.

    Raises UserError if it does not fit the config: another architecture or vocabulary, or no moments to continue with.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.reset = set(config.training.reset)
        self.checkpoint = Checkpoint(Path(config.training.init_from or "").expanduser())
        self.checkpoint.check_model(config.model)
        manifest, path = self.checkpoint.manifest, self.checkpoint.path
        check_function(self.checkpoint, config)
        kept = {"optimizer", "schedule", "data"} - self.reset
        if kept and manifest.kind != "pretrain":
            raise UserError(
                f"training.reset: {path} is a {manifest.kind} checkpoint, whose run cannot continue; "
                f"add {', '.join(sorted(kept))} to training.reset"
            )
        theirs, ours = self.checkpoint.optimizer, config.training.optimizer
        if "optimizer" in kept and theirs != ours:
            raise UserError(f"training.reset: {path} holds the state of {theirs}, not of {ours}; add optimizer to it")
        if "optimizer" in kept and not all(self.checkpoint.has(kind) for kind in KINDS):
            raise UserError(f"training.reset: {path} holds no optimizer state; add optimizer to it")
        self.state = self.starting_state()

    def masks(self) -> PackedMasks:
        """The run's masks: the config's or, with ``sparsity.pattern: init_from``, the checkpoint's.

        Raises UserError if the checkpoint has none, or if they do not match the config's level and targets.
        """
        sparsity, path = self.config.sparsity, self.checkpoint.path
        if sparsity.pattern != "init_from":
            return PackedMasks.pack(RandomMasks(self.config.model, sparsity))
        tensors = self.checkpoint.manifest.tensors
        sparse = {name for name, tensor in tensors.items() if tensor.sparse}
        if not sparse:
            was = ", which was made dense" if len(self.checkpoint.masks) else ""
            raise UserError(f"sparsity.pattern: init_from takes the masks of {path}{was}: it has no masks in use")
        wanted = sparse_weights(logical_weights(self.config.model), sparsity)
        if different := sparse ^ set(wanted):
            raise UserError(
                f"sparsity.targets: the masks of {path} are not those of sparsity.targets: {min(different)} has "
                f"{'one' if min(different) in sparse else 'none'} there"
            )
        records = self.checkpoint.manifest.masks
        numel = sum(records[name].shape[0] * records[name].shape[1] for name in sparse)
        real = 1 - sum(records[name].kept for name in sparse) / numel
        asked = float(sum(weight.level * weight.numel for weight in wanted.values()) / numel)
        if abs(real - asked) > LEVEL_TOLERANCE:
            raise UserError(f"sparsity.level: the masks of {path} prune {real:.6g}, not {asked:g}")
        return PackedMasks.pack(
            {name: self.checkpoint.masks[name] for name in logical_weights(self.config.model) if name in sparse}
        )

    def starting_state(self) -> TrainingState:
        """The training state that the run begins with: its step and its position in the data. Raises UserError."""
        manifest, path, config = self.checkpoint.manifest, self.checkpoint.path, self.config
        old = load_training_state(self.checkpoint) if manifest.kind == "pretrain" else TrainingState()
        state, per_step = TrainingState(), tokens_per_step(config)
        if "schedule" not in self.reset:
            step, rest = divmod(manifest.consumed_tokens, per_step)
            if rest:
                raise UserError(
                    f"training.reset: {path} has consumed {manifest.consumed_tokens} tokens, which are not whole steps "
                    f"of {per_step} tokens; add schedule to it, or use the checkpoint's training.global_batch_size"
                )
            if step >= total_steps(config):
                raise UserError(
                    f"training.train_tokens: {path} has consumed {manifest.consumed_tokens} tokens already, and the "
                    f"schedule continues from there; set a larger number, or add schedule to training.reset"
                )
            state = replace(old, step=step, token_offset=0, callbacks={})
        batch = config.training.global_batch_size
        first = (
            0
            if "data" in self.reset
            else old.data_offset + (manifest.consumed_tokens - old.token_offset) // config.model.seq_length
        )
        state.data_offset = first - state.step * batch
        return state

    def load(self, engine: Engine) -> None:
        """Load the weights, and the moments unless they are reset, into the engine."""
        read = through_masks(self.checkpoint)
        load_weights(engine, self.checkpoint, read)
        if "optimizer" not in self.reset:
            load_moments(engine, self.checkpoint, read)

    def note(self, masks: PackedMasks) -> str:
        """A message that says what a run with these masks takes over from the checkpoint."""
        kept = [what for what in ("optimizer", "schedule", "data") if what not in self.reset]
        text = f"starts from {self.checkpoint.path}: weights{''.join(f', {what}' for what in kept)}"
        lost = self.share_pruned(masks)
        return f"{text}; the masks prune {lost:.1%} of the linear weights that it keeps" if lost else text

    def share_pruned(self, masks: PackedMasks) -> float:
        """The share of the checkpoint's kept linear weights that these masks prune."""
        total = lost = 0
        for name, (rows, columns) in logical_weights(self.config.model).items():
            if not self.checkpoint.manifest.tensors[name].sparse:
                old, kept = None, rows * columns
            else:
                old, kept = self.checkpoint.masks[name], self.checkpoint.manifest.masks[name].kept
            total += kept
            if name not in masks or (old is not None and masks.records[name] == self.checkpoint.manifest.masks[name]):
                continue
            new = masks[name]
            lost += kept - int((new if old is None else new & old).sum())
        return lost / total
