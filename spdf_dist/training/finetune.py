"""Dense (or, as a control, sparse) fine-tuning from a pre-trained checkpoint.

The checkpoint is densified on load: pruned weights start at zero and learn. Moments, step count and schedule are new;
an old step count would give the reactivated weights a first update of several times the learning rate.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from spdf_dist.checkpoint.find import latest, whole_checkpoints
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.write import delete, prune
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import FinetuneConfig
from spdf_dist.config.validate import validate_tensor_parallel
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.model.gpt import GPT
from spdf_dist.parallel.groups import Groups
from spdf_dist.parallel.layout import pieces_of
from spdf_dist.parallel.ranks import Ranks
from spdf_dist.training.engine import Engine
from spdf_dist.training.execution import decide
from spdf_dist.training.loop import Loop, TrainingState
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.setup import (
    build_model,
    newest_checkpoint,
    on_rank_zero,
    peak_flops,
    reporting,
    start,
    weight_dtype,
)
from spdf_dist.training.state import load_moments, load_training_state, load_weights, save_state
from spdf_dist.training.stop import StopRequest
from spdf_dist.training.task_batches import TaskBatches


def finetune(config: FinetuneConfig, ranks: Ranks) -> None:
    """Run, or continue, ``config.run_dir``; every rank calls it.

    The run's newest checkpoint is in the end the one with the best validation loss. Raises UserError for bad input
    before anything is written, Stopped, NonFiniteError.
    """
    with StopRequest() as stop:
        groups = start(config, ranks)
        folder = RunFolder(config.run_dir)
        task = config.finetune
        origin = Checkpoint(task.checkpoint)
        if origin.tokenizer_dir is None:
            raise UserError(f"finetune.checkpoint: {origin.path} holds no tokenizer")
        tokenizer = load_tokenizer(origin.tokenizer_dir)
        model_config = replace(origin.model, dropout=task.dropout)
        validate_tensor_parallel(model_config, groups.tensor_size)
        origin_masks = PackedMasks.pack(origin.masks)
        masks = origin_masks if task.keep_mask else PackedMasks.pack({})
        sparsity = origin.sparsity if task.keep_mask else None
        source = TaskBatches(config, model_config, sparsity, tokenizer, groups)

        on_rank_zero(groups, lambda: folder.open(config))
        if groups.broadcast(folder.result.exists() if groups.rank == 0 else None):
            if groups.rank == 0:
                print(f"finetune: {folder.path} is complete already")
            return
        checkpoint = newest_checkpoint(folder, groups)
        state = load_training_state(checkpoint) if checkpoint else TrainingState()

        tokens = config.training.micro_batch_size * min(task.max_length, model_config.seq_length)
        execution = decide(config.sparsity.execution, model_config, masks, groups, folder, tokens, weight_dtype(config))
        model = build_model(config, model_config, groups, masks, execution, task.label_smoothing)
        engine = Engine(model.to(groups.device), config, groups)
        load_weights(engine, checkpoint or origin)
        if checkpoint is not None:
            load_moments(engine, checkpoint)

        reactivated = (
            0
            if task.keep_mask
            else sum(fact.shape[0] * fact.shape[1] - fact.kept for fact in origin_masks.facts.values())
        )
        callbacks = reporting("finetune", folder, groups, model, state, source.total_steps)
        if checkpoint is None:
            note = "keeps the mask" if task.keep_mask else f"dense, {reactivated:,} pruned weights reactivated"
            for callback in callbacks:
                callback.on_note(f"{task.task} from {origin.path}: {note}")

        def save(current: TrainingState) -> None:
            save_state(
                engine,
                folder.checkpoints,
                current.step,
                config=config,
                model=model_config,
                sparsity=origin.sparsity,
                masks=origin_masks,
                tokenizer=origin.tokenizer_dir,
                kind="finetune",
                consumed_tokens=source.consumed_tokens(current.step),
                state=vars(current),
            )
            if groups.rank == 0:
                prune(folder.checkpoints, config.checkpoint.keep, protect=current.best_step)

        Loop(
            engine=engine,
            source=source,
            state=state,
            callbacks=callbacks,
            save=save,
            checkpoint_interval=config.checkpoint.interval,
            stop=stop,
            patience=task.patience if task.validation else 0,
            keep_best=True,
            peak_flops=peak_flops(config, groups),
        ).run()
        groups.barrier()
        if groups.rank == 0 and state.best_step:
            for path in whole_checkpoints(folder.checkpoints):
                if Checkpoint(path).step != state.best_step:
                    delete(path)
        groups.barrier()
        norm = None
        if reactivated:
            best = latest(folder.checkpoints)
            assert best is not None
            norm = reactivated_norm(Checkpoint(best), model, origin_masks, groups)
        if groups.rank == 0:
            facts = {
                "schema_version": 1,
                "task": task.task,
                "checkpoint": str(Path(task.checkpoint)),
                "reactivated": reactivated,
                "reactivated_norm": norm,
                "best_val_loss": state.best_val_loss,
                "best_step": state.best_step,
                "steps": state.step,
                "epochs": state.step / source.steps_per_epoch,
                "total_flops": state.total_flops,
            }
            folder.write_json("finetune.json", facts)
            folder.write_json(folder.result.name, facts)


def reactivated_norm(best: Checkpoint, model: GPT, origin_masks: PackedMasks, groups: Groups) -> float:
    """L2 norm of the weights that the mask had pruned, after fine-tuning; each tensor rank reads its slices."""
    square = torch.zeros((), dtype=torch.float64)
    for parameter in model.parameters():
        for piece in pieces_of(parameter):
            if piece.name not in origin_masks:
                continue
            mask = torch.from_numpy(origin_masks[piece.name]).narrow(
                piece.dim or 0, piece.start, piece.stop - piece.start
            )
            square += best.read_piece(piece)[~mask].double().square().sum()
    square = square.to(groups.device)
    dist.all_reduce(square, group=groups.tensor_group)
    return math.sqrt(float(square))
