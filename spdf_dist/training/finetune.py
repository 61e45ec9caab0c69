"""Dense (or, as a control, sparse) fine-tuning from a pre-trained checkpoint.

The checkpoint is densified on load: pruned weights start at zero and are trained. Moments, step count and schedule are
new. With the old step count, the first update of the reactivated weights would be several times the learning rate.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from spdf_dist.base.numbers import counted
from spdf_dist.base.rank_variables import Ranks
from spdf_dist.checkpoint.densify import reactivated_count
from spdf_dist.checkpoint.find import whole_checkpoints
from spdf_dist.checkpoint.lineage import lineage
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.write import delete
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.schema import FinetuneConfig
from spdf_dist.config.validate import validate_sequence_parallel, validate_tensor_parallel
from spdf_dist.data.tokenizer import Tokenizer, load_tokenizer
from spdf_dist.model.gpt import GPT
from spdf_dist.parallel.groups import Groups, choose_device
from spdf_dist.parallel.layout import shards_of
from spdf_dist.training.inputs import content_digests
from spdf_dist.training.opening import Opening, use_all_cores, warn_early
from spdf_dist.training.run import AllowedChanges, TrainedModel, TrainingRun
from spdf_dist.training.run_folder import writing
from spdf_dist.training.schedule import Linear
from spdf_dist.training.setup import check_tokenizer
from spdf_dist.training.state import load_training_state, load_weights
from spdf_dist.training.task_batches import TaskBatches
from spdf_dist.training.training_state import TrainingState


def finetune(config: FinetuneConfig, ranks: Ranks, allowed: AllowedChanges | None = None) -> None:
    """Start or continue the run in ``config.run_dir``; every rank calls it.

    In the end the run keeps only the checkpoint with the best validation loss or, without validation, the newest ones.

    Raises:
        UserError: the input is not valid; nothing has been written.
        Stopped: a signal requested a stop, and the state is saved.
        NonFiniteError: a loss or gradient is not finite.
        SpdfError: a checkpoint cannot be saved, or none is left.
    """
    task = config.finetune
    with TrainingRun("finetune", config, ranks, allowed or AllowedChanges()) as run:
        groups, folder = run.groups, run.folder
        origin, tokenizer, data = read_inputs(config, groups)
        model_config, sparsity = data.model, data.sparsity
        origin_masks = PackedMasks.pack(origin.masks)
        warn_early(data.opening)

        inputs = {"training": content_digests(task.train), "validation": content_digests(task.validation)}
        run.open(tokenizer, {**inputs, "checkpoint": [origin.manifest.sha256]})
        run.resume()
        if groups.on_rank_zero(folder.result.exists):
            if groups.rank == 0:
                print(f"finetune: {folder.path} is complete already")
            return
        source = {"lineage": lineage(origin), "synthetic": data.synthetic}
        groups.on_rank_zero(lambda: folder.write_json("lineage.json", {"schema_version": 1, **source}))
        run.build(
            TrainedModel(
                model_config,
                sparsity,
                origin_masks if task.keep_mask else PackedMasks.pack({}),
                config.training.micro_batch_size * min(task.max_length, model_config.seq_length),
                task.label_smoothing,
                recorded_sparsity=origin.sparsity,
                recorded_masks=origin_masks,
                source=source,
                parameterization=origin.parameterization,
            ),
            load=lambda engine: load_weights(engine, origin),
        )

        reactivated = 0 if task.keep_mask else reactivated_weights(origin)
        note = "keeps the mask" if task.keep_mask else f"dense, {reactivated:,} pruned weights reactivated"
        notes = [f"{task.task} from {origin.path}: {note}"] if run.checkpoint is None else []
        if groups.rank == 0:
            notes += data.opening().lines(data.data_lines())
        schedule = Linear(config.training.lr, task.warmup_steps, data.total_steps)
        run.train(
            data,
            schedule.lr,
            validation_interval=data.steps_per_epoch,
            patience=task.patience if task.validation else 0,
            keep_best=True,
            notes=notes,
        )
        state = run.state
        best = Checkpoint(groups.on_rank_zero(lambda: keep_best(folder.checkpoints, state)))
        norm = reactivated_norm(best, run.engine.model, origin_masks, groups) if reactivated else None
        summary = {
            "schema_version": 1,
            "task": task.task,
            "checkpoint": str(Path(task.checkpoint)),
            "reactivated": reactivated,
            "reactivated_norm": norm,
            "best_val_loss": state.best_val_loss,
            "best_step": state.best_step,
            "steps": state.step,
            "epochs": state.step / data.steps_per_epoch,
            "total_flops": state.total_flops,
        }
        groups.on_rank_zero(lambda: folder.write_json("finetune.json", summary))
        run.finish(summary, best.path)


def read_inputs(config: FinetuneConfig, groups: Groups) -> tuple[Checkpoint, Tokenizer, TaskBatches]:
    """The checkpoint to start from, its tokenizer, and the task's batches. Raises UserError for an invalid input."""
    task = config.finetune
    origin = Checkpoint(task.checkpoint)
    if origin.tokenizer_dir is None:
        raise UserError(f"finetune.checkpoint: {origin.path} holds no tokenizer")
    tokenizer = load_tokenizer(origin.tokenizer_dir)
    check_tokenizer(tokenizer, origin.model, f"finetune.checkpoint: the tokenizer of {origin.path}")
    if task.keep_mask and len(origin.masks) and not any(t.sparse for t in origin.manifest.tensors.values()):
        raise UserError(f"finetune.keep_mask: {origin.path} is dense: start from the sparse checkpoint")
    model = replace(origin.model, dropout=task.dropout)
    validate_tensor_parallel(model, groups.tensor_size)
    validate_sequence_parallel(model, config.parallel)
    sparsity = origin.sparsity if task.keep_mask else None
    return origin, tokenizer, TaskBatches(config, model, sparsity, tokenizer, groups)


def foresee(config: FinetuneConfig, world_size: int) -> tuple[Opening, list[str]]:
    """What the run would do on this machine with ``world_size`` ranks, and its lines about the data.

    Raises UserError for an input that is not valid, as ``finetune`` does.
    """
    use_all_cores()
    tensor, device = config.parallel.tensor, choose_device(config.device, 0)
    if world_size % tensor:
        raise UserError(f"parallel.tensor: {tensor} does not divide {counted(world_size, 'rank')}")
    _, _, data = read_inputs(config, Groups(0, world_size, 0, tensor, 0, world_size // tensor, device))
    return data.opening(), data.data_lines()


def keep_best(root: Path, state: TrainingState) -> str:
    """Delete all checkpoints but the best one and return its path.

    Without validation nothing is deleted and the newest is returned. If the best checkpoint is not complete, the best
    of the others is kept, and ``state`` is set to it. Raises SpdfError if there is no complete checkpoint.
    """
    found = {checkpoint.step: checkpoint for checkpoint in map(Checkpoint, whole_checkpoints(root))}
    if not found:
        raise SpdfError(
            f"{root} no longer holds a complete checkpoint, so the model is lost; run the same command to start over"
        )
    if (lost := state.best_step) and lost not in found:
        saved = [load_training_state(checkpoint) for checkpoint in found.values()]
        were_best = [(s.best_val_loss, s.step) for s in saved if s.best_val_loss is not None and s.best_step == s.step]
        state.best_val_loss, state.best_step = min(were_best, default=(None, 0))
        kept = f"best of the others, step_{state.best_step}" if state.best_step else f"newest, step_{max(found)}"
        print(
            f"finetune: WARNING: the best checkpoint, step_{lost}, is missing or damaged; the {kept}, is kept",
            file=sys.stderr,
        )
    if not state.best_step:
        return str(found[max(found)].path)
    for step, checkpoint in found.items():
        if step != state.best_step:
            with writing(checkpoint.path):
                delete(checkpoint.path)
    return str(found[state.best_step].path)


def reactivated_weights(origin: Checkpoint) -> int:
    """The number of weights that a mask kept at zero in the checkpoint, or in the one that it was densified from."""
    if origin.manifest.kind == "densified":
        return int((origin.manifest.source or {}).get("reactivated", 0))
    return reactivated_count(origin)[0]


def reactivated_norm(best: Checkpoint, model: GPT, origin_masks: PackedMasks, groups: Groups) -> float:
    """L2 norm of the weights of ``best`` that the mask had pruned; collective. Each tensor rank reads its slices."""
    square = torch.zeros((), dtype=torch.float64)
    for parameter in model.parameters():
        for shard in shards_of(parameter):
            if shard.name not in origin_masks:
                continue
            mask = torch.from_numpy(origin_masks[shard.name]).narrow(
                shard.dim or 0, shard.start, shard.stop - shard.start
            )
            square += best.read_shard(shard)[~mask].double().square().sum()
    square = square.to(groups.device)
    dist.all_reduce(square, group=groups.tensor_group)
    return math.sqrt(float(square))
