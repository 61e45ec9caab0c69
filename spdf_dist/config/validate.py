"""Checks of a config that need neither data nor ranks. Every message names the key."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from spdf_dist.config.budget import tokens_per_step, total_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import (
    AnyConfig,
    FinetuneConfig,
    ModelConfig,
    ParallelConfig,
    PretrainConfig,
    SparsityConfig,
    TrainingConfig,
)
from spdf_dist.config.suggest import nearest
from spdf_dist.config.values import Range
from spdf_dist.extensions import task_names
from spdf_dist.model.architecture import FAMILIES, architecture_of, family_module
from spdf_dist.sparsity.assignment import sparse_weights
from spdf_dist.sparsity.levels import check_levels
from spdf_dist.sparsity.masks import logical_weights
from spdf_dist.sparsity.patterns import parse_pattern
from spdf_dist.sparsity.update import check_dynamic

LARGEST = {
    "num_layers": 10_000,
    "hidden_size": 1 << 20,
    "num_attention_heads": 1 << 16,
    "ffn_hidden_size": 1 << 22,
    "seq_length": 1 << 24,
    "vocab_size": 1 << 28,
}
"""Limits far beyond any model. A larger value is a typing error that would use up all memory."""
MAX_RANKS = 1 << 20


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


def one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UserError, with the nearest known word, unless ``value`` is one of ``known``."""
    require(value in known, f"{key}: '{value}' is not known{nearest(value, known)} (one of {', '.join(known)})")


@functools.cache
def constraints(kind: type) -> dict[str, list[Any]]:
    """The constraints of each field of a dataclass of the config: ``Range``s, and the words of ``Literal``s."""

    def of(hint: Any) -> Iterator[Any]:
        origin = get_origin(hint)
        if origin is Annotated:
            yield from (mark for mark in hint.__metadata__ if isinstance(mark, Range))
        elif origin is Literal:
            yield get_args(hint)
        elif origin in (Union, UnionType):
            yield from (found for option in get_args(hint) for found in of(option))

    return {name: list(of(hint)) for name, hint in get_type_hints(kind, include_extras=True).items()}


def check_values(section: str, settings: object) -> None:
    """Check every value below ``settings`` by its type in the schema. Raises UserError.

    ``section`` is the dotted key of ``settings`` in the config, empty for the whole config.
    """
    kind: Any = type(settings)
    for name, found in constraints(kind).items():
        key, value = f"{section}.{name}" if section else name, getattr(settings, name)
        if is_dataclass(value):
            check_values(key, value)
        for constraint in found if value is not None else ():
            if isinstance(constraint, Range):
                require(constraint.holds(value), f"{key}: {constraint.words}, got {value}")
            else:
                one_of(key, value, constraint)


def require_defaults(section: str, settings: Any, keys: Iterable[str], needs: str) -> None:
    """Raise UserError unless ``keys`` of ``settings`` have their defaults: they have no effect without ``needs``."""
    for key in keys:
        changed = getattr(settings, key) != getattr(type(settings)(), key)
        require(not changed, f"{section}.{key}: has no effect without {needs}")


def validate_model(model: ModelConfig) -> None:
    """Raise UserError unless the sizes are those of a model of its family."""
    for key, largest in LARGEST.items():
        value = getattr(model, key)
        require(value is None or value <= largest, f"model.{key}: {value} is too large: at most {largest}")
    check_values("model", model)
    one_of("model.family", model.family, FAMILIES)
    require(
        model.hidden_size % model.num_attention_heads == 0,
        f"model.hidden_size: {model.hidden_size} is not divisible by "
        f"model.num_attention_heads {model.num_attention_heads}",
    )
    require(
        model.key_value_heads > 0 and model.num_attention_heads % model.key_value_heads == 0,
        f"model.num_key_value_heads: {model.num_key_value_heads} does not divide "
        f"model.num_attention_heads {model.num_attention_heads}",
    )
    family_module(model.family, "architecture").validate(model)


def validate_sparsity(sparsity: SparsityConfig) -> None:
    """Check levels, patterns and methods without the model. Raises UserError."""
    check_values("sparsity", sparsity)
    for glob, level in sparsity.levels.items():
        require(0 <= level < 1, f"sparsity.levels.{glob}: must be in [0, 1), got {level}")
    if sparsity.algorithm == "static":
        keys = ("update", "drop_fraction", "groups", "new_moments")
        require_defaults("sparsity", sparsity, keys, "sparsity.algorithm=set, rigl or gmp")
    require(
        bool(sparsity.targets) or not sparsity.is_sparse,
        f"sparsity.targets: is empty, so that sparsity.level {sparsity.level} prunes nothing; name some matrices",
    )
    patterns = [parse_pattern(text) for text in (sparsity.pattern, *sparsity.patterns.values())]
    require(
        not sparsity.permute or any(pattern.block > 1 for pattern in patterns),
        f"sparsity.permute: has no effect with {sparsity.pattern}; it applies to block:B and balanced:B",
    )


def validate_pattern(sparsity: SparsityConfig, model: ModelConfig) -> None:
    """Raise UserError unless the targets are weights of the model and fit the patterns and levels."""
    for target in sparsity.targets:
        one_of("sparsity.targets", target, architecture_of(model).targets)
    for weight in sparse_weights(logical_weights(model), sparsity).values():
        weight.check()


def validate_parallel(config: AnyConfig) -> None:
    """Check the numbers of ranks and the ZeRO stage. Raises UserError."""
    parallel = config.parallel
    ranks = parallel.tensor * (parallel.data or 1)
    require(ranks <= MAX_RANKS, f"parallel: {ranks} ranks are too many: at most {MAX_RANKS}")
    require(not parallel.sequence or parallel.tensor > 1, "parallel.sequence: needs parallel.tensor of 2 or more")
    if parallel.zero_stage == 3:
        require(
            config.deepspeed is None,
            "deepspeed: has no effect with parallel.zero_stage=3, which uses torch's FSDP2 instead of DeepSpeed",
        )
        require(
            config.training.optimizer == "adamw",
            "training.optimizer: muon needs whole matrices and parallel.zero_stage 0, 1 or 2; stage 3 divides them",
        )
        method = getattr(config.sparsity, "algorithm", "static")
        require(
            method == "static",
            f"sparsity.algorithm: {method} needs whole weights and parallel.zero_stage 0, 1 or 2; stage 3 divides them",
        )
    require(
        not (config.training.precision == "bf16" and parallel.zero_stage == 0),
        "parallel.zero_stage: bf16 needs stage 1, 2 or 3 (stage 0 gives wrong gradient norms under tensor parallelism)",
    )


def validate_tensor_parallel(model: ModelConfig, tensor: int) -> None:
    """Raise UserError unless ``tensor`` ranks can divide the model's heads and MLP. Each rank holds whole heads."""
    key, heads, what = "num_attention_heads", model.num_attention_heads, "attention heads"
    if model.key_value_heads != heads:
        key, heads, what = "num_key_value_heads", model.key_value_heads, "key and value heads"
    require(heads % tensor == 0, f"parallel.tensor: {heads} {what} (model.{key}) are not divisible by {tensor}")
    require(model.ffn % tensor == 0, f"parallel.tensor: model.ffn_hidden_size {model.ffn} is not divisible by {tensor}")


def validate_sequence_parallel(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Raise UserError unless the tensor ranks can divide the tokens, where sequence parallelism is on."""
    length, tensor = model.seq_length, parallel.tensor
    require(
        not parallel.sequence or length % tensor == 0,
        f"parallel.sequence: model.seq_length {length} is not divisible by {tensor}",
    )


def tensor_size_fits(model: ModelConfig, tensor: int) -> bool:
    """Whether ``validate_tensor_parallel`` accepts ``tensor`` ranks."""
    return model.key_value_heads % tensor == 0 and model.ffn % tensor == 0


def validate(config: AnyConfig) -> None:
    """Raise UserError for the first error found."""
    check_values("", config)
    validate_parallel(config)
    if config.training.optimizer != "muon":
        require_defaults("training", config.training, ["muon_momentum"], "training.optimizer=muon")
    require(config.run_dir.strip() != "", "run_dir: is empty")
    if isinstance(config, PretrainConfig):
        validate_pretrain(config)
    else:
        one_of("finetune.task", config.finetune.task, tuple(task_names()))
    if config.parallel.data is not None:
        validate_batch(config, config.parallel.data)


def validate_batch(config: AnyConfig, data_ranks: int) -> None:
    """Raise UserError unless the data ranks and micro-batches divide the global batch evenly."""
    training = config.training
    per_pass = training.micro_batch_size * data_ranks
    require(
        training.global_batch_size % per_pass == 0,
        f"training.global_batch_size: {training.global_batch_size} is not divisible by "
        f"training.micro_batch_size {training.micro_batch_size} x {data_ranks} data ranks",
    )


def validate_pretrain(config: PretrainConfig) -> None:
    """Check the keys that only pre-training has. Raises UserError."""
    validate_model(config.model)
    validate_sparsity(config.sparsity)
    validate_pattern(config.sparsity, config.model)
    validate_tensor_parallel(config.model, config.parallel.tensor)
    validate_sequence_parallel(config.model, config.parallel)
    training = config.training
    # The schedule counts whole steps: a budget that is rounded down may end within its warm-up.
    tokens = total_steps(config) * tokens_per_step(config)
    require(
        training.warmup_tokens < max(tokens, 1),
        f"training.warmup_tokens: {training.warmup_tokens} must be less than the run's {tokens} tokens "
        f"(training.train_tokens {training.train_tokens}, in whole steps: {total_steps(config)})",
    )
    for what in training.reset:
        one_of("training.reset", what, ("optimizer", "schedule", "data"))
    if config.sparsity.pattern == "init_from":
        require(
            training.init_from is not None,
            "sparsity.pattern: init_from takes the masks of training.init_from, which is not set",
        )
    validate_parameterization(config)
    check_levels(config.sparsity, total_steps(config))
    check_dynamic(config.model, config.sparsity, total_steps(config), config.parallel.tensor)
    if training.schedule in ("cosine", "linear"):  # a `constant` run may share the settings of its wsd branches
        require_defaults("training", training, ("cooldown_fraction", "cooldown_shape"), "training.schedule=wsd")
    idle = training.init_from is None and set(training.reset) != set(TrainingConfig().reset)
    require(not idle, "training.reset: has no effect without training.init_from")
    if training.schedule == "wsd":
        fraction = training.cooldown_fraction
        require(0 < fraction <= 1, f"training.cooldown_fraction: must be in (0, 1], got {fraction}")
        require(
            training.warmup_tokens <= (1 - fraction) * tokens or tokens == 0,
            f"training.cooldown_fraction: the last {fraction:g} of {tokens} tokens begins within the warm-up of "
            f"{training.warmup_tokens}",
        )
    for entry in (*config.data.train, *config.data.validation):
        require(entry.weight > 0, f"data: weight of {entry.path} must be positive, got {entry.weight}")


SUPAR_KEYS = (
    "base_hidden_size",
    "base_ffn_hidden_size",
    "base_num_layers",
    "embedding_multiplier",
    "output_multiplier",
    "attention_multiplier",
    "weight_decay_scaling",
)


def validate_parameterization(config: PretrainConfig) -> None:
    """Check the parameterization, and that only supar sets base sizes and multipliers. Raises UserError."""
    training = config.training
    if training.parameterization == "standard":
        require_defaults("training", training, SUPAR_KEYS, "training.parameterization=supar")
        return
    require(
        training.optimizer == "adamw",
        "training.optimizer: supar's rates are AdamW's, and are wrong for muon, whose update does not depend on the "
        "gradient's size; set training.parameterization=standard",
    )
    require(
        training.base_hidden_size is not None,
        "training.base_hidden_size: supar needs it: the width at which training.lr was tuned",
    )
    require(
        config.sparsity.init_scale == "none",
        f"sparsity.init_scale: {config.sparsity.init_scale} would scale by the density twice: supar does it already",
    )


def require_inputs(config: FinetuneConfig) -> None:
    """Raise UserError without a checkpoint and training file, which shipped configs leave to the command line."""
    task = config.finetune
    require(task.checkpoint != "", "finetune.checkpoint: is not set: the run folder or checkpoint to start from")
    require(task.train != "", "finetune.train: is not set: the task's training file")
