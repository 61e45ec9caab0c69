"""Sparse (or dense) pre-training of one run folder, from the start or from its last checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from spdf_dist.accounting.hardware import GPUS
from spdf_dist.checkpoint.find import latest
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.write import prune
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import AnyConfig, PretrainConfig
from spdf_dist.config.validate import validate_batch
from spdf_dist.data.loader import Mixture, open_mixture
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.model.gpt import GPT, build_gpt, sparse_linears
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.parallel.groups import Groups, initialize
from spdf_dist.parallel.layout import pieces_of
from spdf_dist.parallel.ranks import Ranks
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.training.batches import PretrainBatches
from spdf_dist.training.callbacks import Callback, MetricsFile, Progress, TensorBoard
from spdf_dist.training.engine import Engine
from spdf_dist.training.execution import decide
from spdf_dist.training.loop import Loop, TrainingState
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.state import load_moments, load_weights, save_state
from spdf_dist.training.stop import StopRequest


def pretrain(config: PretrainConfig, ranks: Ranks) -> None:
    """Run, or continue, ``config.run_dir``; every rank calls it.

    Raises UserError for bad input before anything is written, Stopped, NonFiniteError.
    """
    with StopRequest() as stop:
        groups = start(config, ranks)
        folder = RunFolder(config.run_dir)
        train, validation, tokenizer = open_data(config)
        on_rank_zero(groups, lambda: folder.open(config))
        found = groups.broadcast(str(latest(folder.checkpoints) or "") if groups.rank == 0 else None)
        checkpoint = Checkpoint(found) if found else None
        if checkpoint is not None:
            checkpoint.check_model(config.model)
        state = TrainingState(**checkpoint.manifest.state) if checkpoint else TrainingState()

        dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
        masks = PackedMasks.pack(RandomMasks(config.model, config.sparsity))
        tokens = config.training.micro_batch_size * config.model.seq_length
        execution = decide(config.sparsity.execution, config.model, masks, groups, folder, tokens, dtype)
        model = build_gpt(
            config.model,
            groups,
            masks=masks,
            execution=execution,
            dtype=dtype,
            activation_checkpointing=config.training.activation_checkpointing,
        )
        if checkpoint is None:
            initialize_parameters(model, config.model, config.sparsity, config.seed)
        engine = Engine(model.to(groups.device), config, groups)
        if checkpoint is not None:
            load_weights(engine, checkpoint)
            load_moments(engine, checkpoint)

        source = PretrainBatches(config, train, validation, groups)
        callbacks: list[Callback] = []
        if groups.rank == 0:
            folder.cut_metrics(state.step)
            callbacks = [
                MetricsFile(folder),
                TensorBoard(folder, state.step, sparsity_by_group(model)),
                Progress("pretrain", state.step, source.total_steps),
            ]
            if checkpoint is not None:
                callbacks[-1].on_note(f"continues from step {state.step} of {source.total_steps}")
            for place, how in execution.items():
                callbacks[-1].on_note(f"sparse {place}: {how}")

        def save(current: TrainingState) -> None:
            save_state(
                engine,
                folder.checkpoints,
                current.step,
                config=config,
                model=config.model,
                sparsity=config.sparsity,
                masks=masks,
                tokenizer=tokenizer,
                kind="pretrain",
                consumed_tokens=source.consumed_tokens(current.step),
                state=vars(current),
            )
            if groups.rank == 0:
                prune(folder.checkpoints, config.checkpoint.keep)

        if source.total_steps == 0 and checkpoint is None:
            save(state)
        Loop(
            engine=engine,
            source=source,
            state=state,
            callbacks=callbacks,
            save=save,
            checkpoint_interval=config.checkpoint.interval,
            stop=stop,
            skip_loss_spike=config.training.skip_loss_spike,
            peak_flops=peak_flops(config, groups),
        ).run()
        if groups.rank == 0:
            folder.write_json(
                folder.result.name,
                {
                    "schema_version": 1,
                    "steps": state.step,
                    "consumed_tokens": source.consumed_tokens(state.step),
                    "total_flops": state.total_flops,
                    "best_val_loss": state.best_val_loss,
                },
            )


def start(config: AnyConfig, ranks: Ranks) -> Groups:
    """Process groups, determinism and the checks that need the world size."""
    deterministic = config.training.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "Ring")
        torch.use_deterministic_algorithms(True)
    groups = initialize(ranks, config.parallel.tensor, config.parallel.data, config.device)
    validate_batch(config, groups.data_size)
    return groups


def on_rank_zero(groups: Groups, action: Any) -> None:
    """Run ``action`` on rank 0; its UserError is raised on every rank."""
    message = None
    if groups.rank == 0:
        try:
            action()
        except UserError as error:
            message = str(error)
    message = groups.broadcast(message)
    if message is not None:
        raise UserError(message)


def open_data(config: PretrainConfig) -> tuple[Mixture, Mixture | None, Path | None]:
    """Training data, validation data, and the tokenizer to keep with checkpoints. Raises UserError."""
    model = config.model
    train = open_mixture(config.data.train, model.seq_length, config.seed, model.vocab_size)
    validation = None
    if config.data.validation:
        validation = open_mixture(config.data.validation, model.seq_length, config.seed, model.vocab_size)
    if config.data.tokenizer is not None:
        path: Path | None = Path(config.data.tokenizer)
    else:
        kept = Path(config.data.train[0].path) / "tokenizer"
        path = kept if kept.is_dir() else None
    for data in (train, validation):
        if path is None or data is None or data.tokenizer_digest is None:
            continue
        tokenizer = load_tokenizer(path)
        if tokenizer.digest != data.tokenizer_digest:
            raise UserError(f"data.tokenizer: {path} is not the tokenizer that the shards were packed with")
    return train, validation, path


def sparsity_by_group(model: GPT) -> dict[str, float]:
    """The share of pruned weights of each product, over this rank's layers."""
    kept: dict[str, list[int]] = {}
    for name, linear in sparse_linears(model):
        count = kept.setdefault(name.rsplit(".", 1)[1], [0, 0])
        for piece in pieces_of(linear.weight):
            rows, columns = piece.local_shape
            count[0] += rows * columns if piece.mask is None else int(piece.mask.sum())
            count[1] += rows * columns
    return {group: 1 - nonzero / total for group, (nonzero, total) in kept.items()}


def peak_flops(config: AnyConfig, groups: Groups) -> float | None:
    """The dense peak of all ranks' GPUs together, None for a device that is not in the table."""
    if groups.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(groups.device).lower()
    for key in sorted(GPUS, key=len, reverse=True):
        if key.split("-")[0] in name:
            return GPUS[key].peak(config.training.precision) * groups.world_size
    return None
