"""Sparse (or dense) pre-training of one run folder, from the start or from its last checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.write import prune
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.data.loader import Mixture, open_mixture
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.model.gpt import build_gpt
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.parallel.ranks import Ranks
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.training.batches import PretrainBatches
from spdf_dist.training.callbacks import Callback, MetricsFile, Progress, TensorBoard
from spdf_dist.training.engine import Engine
from spdf_dist.training.execution import decide
from spdf_dist.training.loop import Loop, TrainingState
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.setup import newest_checkpoint, on_rank_zero, peak_flops, sparsity_by_group, start
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
        checkpoint = newest_checkpoint(folder, groups)
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
