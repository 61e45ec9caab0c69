"""Sparse or dense pre-training of one run folder, from the start or from its newest checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spdf_dist.base.rank_variables import Ranks
from spdf_dist.checkpoint.find import latest
from spdf_dist.checkpoint.lineage import lineage
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.budget import tokens_per_step, total_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.data.loader import Mixture, open_mixture
from spdf_dist.data.tokenizer import Tokenizer, load_tokenizer
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.parallel.groups import choose_device
from spdf_dist.sparsity.levels import at_step, change_steps, next_masks
from spdf_dist.sparsity.masks import RandomMasks
from spdf_dist.sparsity.update import SWAPPING
from spdf_dist.training.batches import PretrainBatches
from spdf_dist.training.dynamic import DynamicMasks
from spdf_dist.training.init_from import Origin, through_masks
from spdf_dist.training.inputs import warn_of_another_origin
from spdf_dist.training.loop import Spikes
from spdf_dist.training.opening import Opening, data_lines, warn_early
from spdf_dist.training.run import AllowedChanges, TrainedModel, TrainingRun
from spdf_dist.training.schedule import schedule_of
from spdf_dist.training.setup import check_tokenizer


def pretrain(config: PretrainConfig, ranks: Ranks, allowed: AllowedChanges | None = None) -> None:
    """Start or continue the run in ``config.run_dir``; every rank calls it.

    Raises:
        UserError: the input is not valid; nothing has been written.
        Stopped: a signal requested a stop, and the state is saved.
        NonFiniteError: a loss or gradient is not finite.
        DivergedError: too many consecutive updates were skipped.
    """
    with TrainingRun("pretrain", config, ranks, allowed or AllowedChanges()) as run:
        train, validation, tokenizer = open_data(config)
        continues = run.groups.on_rank_zero(lambda: latest(run.folder.checkpoints) is not None)
        origin = Origin(config) if config.training.init_from is not None and not continues else None
        if continues:
            run.groups.on_rank_zero(lambda: warn_of_another_origin(run.folder, config))
        masks = None if continues else origin.masks() if origin else config_masks(config)
        run.open(tokenizer, {"training": digests(train), "validation": digests(validation)})
        while not train_at_one_level(run, config, train, validation, origin, masks):
            origin = masks = None  # the run continues from its own checkpoint, at the next level


def train_at_one_level(
    run: TrainingRun,
    config: PretrainConfig,
    train: Mixture,
    validation: Mixture | None,
    origin: Origin | None,
    masks: PackedMasks | None,
) -> bool:
    """Train until the sparsity level changes or the run ends; returns whether the run has ended.

    A new run starts from ``origin``, if given, and ``masks``. A run that continues uses its newest checkpoint instead.
    """
    training = config.training
    run.resume()
    checkpoint = run.checkpoint
    if checkpoint is not None:
        checkpoint.check_model(config.model)
    elif origin is not None:
        run.state = origin.state
    run.keep_place_with_new_batches(tokens_per_step(config), training.global_batch_size)
    rewound = run.skip_batches_since(training.global_batch_size)
    state, steps = run.state, total_steps(config)
    now = replace(config, sparsity=at_step(config.sparsity, state.step + 1, steps))
    if checkpoint is not None:
        masks = own_masks(now, checkpoint)
    assert masks is not None

    is_gmp = config.sparsity.algorithm == "gmp"
    made_from = (
        checkpoint.manifest.source if checkpoint else {"lineage": lineage(origin.checkpoint)} if origin else None
    )
    tokens = training.micro_batch_size * config.model.seq_length
    run.build(
        TrainedModel(config.model, now.sparsity, masks, tokens, source=made_from),
        initialize=None
        if origin
        else lambda model: initialize_parameters(model, config.model, now.sparsity, config.seed),
        load=origin.load if origin else None,
        read=through_masks(checkpoint) if checkpoint is not None and is_gmp else None,
    )

    data = PretrainBatches(now, train, validation, run.groups, state.data_offset, state.token_offset)
    schedule = schedule_of(training, data.consumed_tokens(data.total_steps))
    method = None
    if config.sparsity.algorithm in SWAPPING:
        method = DynamicMasks(
            run.engine, config.model, config.sparsity, training.clip_grad, data.total_steps, state, checkpoint
        )
    notes = [rewound] if rewound else [origin.note(masks)] if origin else []
    if is_gmp:
        notes.append(f"sparsity {now.sparsity.level:g} from step {state.step + 1}")
    notes += [f"sparse {linear}: {how}" for linear, how in run.execution.items()]
    if run.groups.rank == 0:
        opening = Opening.of_pretraining(now, run.groups.device, run.groups.world_size, validation)
        notes += opening.lines(data_lines(now, train))
    run.train(
        data,
        lambda step: schedule.lr(data.consumed_tokens(step)),
        validation_interval=config.validation.interval,
        spikes=Spikes(training.skip_loss_spike, training.skip_grad_norm_spike, training.max_skipped_in_a_row),
        notes=notes,
        until=next((change for change in change_steps(config.sparsity, steps) if change > state.step), None),
        method=method,
    )
    if state.step < data.total_steps:
        return False
    run.finish({"consumed_tokens": data.consumed_tokens(state.step)})
    return True


def digests(data: Mixture | None) -> list[str]:
    """The digest of each data set, which identify the run's data."""
    return [] if data is None else [dataset.digest() for dataset in data.datasets]


def config_masks(config: PretrainConfig) -> PackedMasks:
    """The masks of the first step, from the config."""
    sparsity = at_step(config.sparsity, 1, total_steps(config))
    return PackedMasks.pack(RandomMasks(config.model, sparsity))


def own_masks(config: PretrainConfig, checkpoint: Checkpoint) -> PackedMasks:
    """The masks of a run that continues: made from the config if that determines them, otherwise the checkpoint's.

    With gmp at another level than the checkpoint's, new masks keep the largest magnitudes of its weights.
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
    """Training data, validation data, and the tokenizer to store with checkpoints.

    Raises UserError if the data or the tokenizer cannot be used with the model.
    """
    warn_early(lambda: Opening.of_pretraining(config, choose_device(config.device, 0)))
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
