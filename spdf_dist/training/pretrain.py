"""Sparse (or dense) pre-training of one run folder, from the start or from its last checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spdf_dist.base.rank_variables import Ranks
from spdf_dist.base.signals import StopRequest
from spdf_dist.checkpoint.find import latest
from spdf_dist.checkpoint.lineage import lineage
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.budget import total_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.data.loader import Mixture, open_mixture
from spdf_dist.data.tokenizer import Tokenizer, load_tokenizer
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.parallel.groups import Groups
from spdf_dist.sparsity.levels import at_step, change_steps, next_masks
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.sparsity.update import SWAPPING
from spdf_dist.training.batches import PretrainBatches
from spdf_dist.training.dynamic import DynamicMasks
from spdf_dist.training.engine import Engine
from spdf_dist.training.execution import decide
from spdf_dist.training.init_from import Origin, through_masks
from spdf_dist.training.loop import Loop, TrainingState
from spdf_dist.training.opening import warn_early
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.setup import (
    build_model,
    check_tokenizer,
    executed_ratio,
    newest_checkpoint,
    on_rank_zero,
    peak_flops,
    prune_checkpoints,
    reporting,
    start,
)
from spdf_dist.training.state import load_moments, load_training_state, load_weights, save_state


def pretrain(config: PretrainConfig, ranks: Ranks) -> None:
    """Run, or continue, ``config.run_dir``; every rank calls it.

    Raises UserError for bad input before anything is written, Stopped, NonFiniteError.
    """
    with StopRequest() as stop:
        groups = start(config, ranks)
        folder = RunFolder(config.run_dir)
        on_rank_zero(groups, lambda: folder.check(config))
        # What can be wrong is found before the folder is opened: a mistake must not leave a run behind.
        data = open_data(config)
        continues = on_rank_zero(groups, lambda: latest(folder.checkpoints) is not None)
        origin = Origin(config) if config.training.init_from is not None and not continues else None
        masks = None if continues else origin.masks() if origin else config_masks(config)
        on_rank_zero(groups, lambda: folder.open(config))
        tokenizer = data[2]
        if tokenizer is not None:
            on_rank_zero(groups, lambda: folder.keep_tokenizer(tokenizer))
        while not train_at_one_level(config, groups, folder, stop, data, origin, masks):
            origin = masks = None  # the run goes on from its own checkpoint, at the next level


def train_at_one_level(
    config: PretrainConfig,
    groups: Groups,
    folder: RunFolder,
    stop: StopRequest,
    data: tuple[Mixture, Mixture | None, Tokenizer | None],
    origin: Origin | None,
    masks: PackedMasks | None,
) -> bool:
    """Train until the level of sparsity changes or the run ends, and say whether it has ended.

    ``origin`` and ``masks`` are what a new run starts from; a run that continues has them in its newest checkpoint.
    """
    train, validation, tokenizer = data
    checkpoint = newest_checkpoint(folder, groups)
    if checkpoint is not None:
        checkpoint.check_model(config.model)
    state = load_training_state(checkpoint) if checkpoint else origin.state if origin else TrainingState()
    steps = total_steps(config)
    now = replace(config, sparsity=at_step(config.sparsity, state.step + 1, steps))
    if checkpoint is not None:
        masks = own_masks(now, checkpoint)
    assert masks is not None

    tokens = config.training.micro_batch_size * config.model.seq_length
    execution = decide(config, config.model, masks, groups, folder, tokens)
    model = build_model(config, config.model, groups, masks, execution)
    if checkpoint is None and origin is None:
        initialize_parameters(model, config.model, now.sparsity, config.seed)
    engine = Engine(model.to(groups.device), config, groups)
    if checkpoint is not None:
        read = through_masks(checkpoint) if config.sparsity.algorithm == "gmp" else None
        load_weights(engine, checkpoint, read)
        load_moments(engine, checkpoint, read)
    elif origin is not None:
        origin.load(engine)

    source = PretrainBatches(now, train, validation, groups, first_sample=state.data_offset)
    ratio = executed_ratio(config, config.model, now.sparsity, execution)
    callbacks = reporting("pretrain", folder, groups, model, state, steps, ratio)
    notes = [origin.note()] if origin else []
    if config.sparsity.algorithm == "gmp":
        notes.append(f"sparsity {now.sparsity.level:g} from step {state.step + 1}")
    notes += [f"sparse {place}: {how}" for place, how in execution.items()]
    for callback in callbacks:
        for note in notes:
            callback.on_note(note)

    method = None
    if config.sparsity.algorithm in SWAPPING:
        method = DynamicMasks(
            engine, config.model, config.sparsity, config.training.clip_grad, steps, state, checkpoint
        )

    made_from = (
        checkpoint.manifest.source if checkpoint else {"lineage": lineage(origin.checkpoint)} if origin else None
    )

    def save(current: TrainingState) -> None:
        save_state(
            engine,
            folder.checkpoints,
            current.step,
            config=config,
            model=config.model,
            sparsity=now.sparsity,
            masks=method.masks() if method else masks,
            mask_records=method.stored_records() if method else None,
            tokenizer=folder.tokenizer if tokenizer is not None else None,
            kind="pretrain",
            consumed_tokens=source.consumed_tokens(current.step),
            state=vars(current),
            source=made_from,
        )
        if groups.rank == 0:
            prune_checkpoints(folder, config.checkpoint.keep, callbacks)

    if steps == 0 and checkpoint is None:
        save(state)
    Loop(
        engine=engine,
        source=source,
        state=state,
        callbacks=callbacks,
        save=save,
        checkpoint_interval=config.checkpoint.interval,
        stop=stop,
        until=next((change for change in change_steps(config.sparsity, steps) if change > state.step), None),
        method=method,
        skip_loss_spike=config.training.skip_loss_spike,
        peak_flops=peak_flops(config, groups),
    ).run()
    if state.step < steps:
        return False
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
    return True


def config_masks(config: PretrainConfig) -> PackedMasks:
    """The masks that the config describes for the first step."""
    sparsity = at_step(config.sparsity, 1, total_steps(config))
    return PackedMasks.pack(RandomMasks(config.model, sparsity))


def own_masks(config: PretrainConfig, checkpoint: Checkpoint) -> PackedMasks:
    """The masks of a run that continues: the config's, or its checkpoint's where the config does not make them.

    With gmp at a level that is not the checkpoint's, they are new: the largest magnitudes of its weights.
    """
    sparsity = config.sparsity
    if sparsity.algorithm == "gmp":
        before = 0.0 if checkpoint.sparsity is None else checkpoint.sparsity.level
        if before != sparsity.level:
            return PackedMasks.pack(next_masks(config.model, sparsity, checkpoint.read_array, checkpoint.masks))
    elif sparsity.pattern != "init_from" and sparsity.algorithm == "static":
        return PackedMasks.pack(RandomMasks(config.model, sparsity))
    return PackedMasks.pack(checkpoint.masks)


def open_data(config: PretrainConfig) -> tuple[Mixture, Mixture | None, Tokenizer | None]:
    """Training data, validation data, and the tokenizer to keep with checkpoints. Raises UserError."""
    warn_early(config)
    model = config.model
    train = open_mixture(config.data.train, model.seq_length, config.seed, model.vocab_size)
    validation = None
    if config.data.validation:
        validation = open_mixture(config.data.validation, model.seq_length, config.seed, model.vocab_size)
    if config.data.tokenizer is not None:
        path = Path(config.data.tokenizer)
    else:
        path = Path(config.data.train[0].path) / "tokenizer"
        if not path.is_dir():
            return train, validation, None
    tokenizer = load_tokenizer(path)
    check_tokenizer(tokenizer, model, f"data.tokenizer: {path}")
    for data in (train, validation):
        if data is not None and data.tokenizer_digest not in (None, tokenizer.digest):
            raise UserError(f"data.tokenizer: {path} is not the tokenizer that the shards were packed with")
    return train, validation, tokenizer
