"""Checks of a config that need neither data nor ranks. Every message names the key."""

from __future__ import annotations

import math

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


def validate_model(model: ModelConfig) -> None:
    """Raise UserError unless the sizes are those of a model of its family."""
    for key, largest in LARGEST.items():
        value = getattr(model, key)
        require(value is None or value <= largest, f"model.{key}: {value} is too large: at most {largest}")
    one_of("model.family", model.family, FAMILIES)
    for key in ("num_layers", "hidden_size", "num_attention_heads", "seq_length", "vocab_size"):
        require(getattr(model, key) > 0, f"model.{key}: must be positive, got {getattr(model, key)}")
    ffn = model.ffn_hidden_size
    require(ffn is None or ffn > 0, f"model.ffn_hidden_size: must be positive, or null for 4 x hidden_size, got {ffn}")
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
    require(0 <= model.dropout < 1, f"model.dropout: must be in [0, 1), got {model.dropout}")
    require(0 < model.norm_eps < 1, f"model.norm_eps: must be between 0 and 1, got {model.norm_eps}")
    family_module(model.family, "architecture").validate(model)


def validate_sparsity(sparsity: SparsityConfig) -> None:
    """Check levels, patterns and methods without the model. Raises UserError."""
    for key, level in {"level": sparsity.level, **{f"levels.{g}": v for g, v in sparsity.levels.items()}}.items():
        require(0 <= level < 1, f"sparsity.{key}: must be in [0, 1), got {level}")
    one_of("sparsity.execution", sparsity.execution, ("masked", "compressed", "auto"))
    one_of("sparsity.init_scale", sparsity.init_scale, ("none", "fan_in"))
    one_of("sparsity.distribution", sparsity.distribution, ("uniform", "er"))
    one_of("sparsity.algorithm", sparsity.algorithm, ("static", "set", "rigl", "gmp"))
    one_of("sparsity.schedule", sparsity.schedule, ("constant", "linear", "cosine", "exponential", "cubic", "list"))
    require(0 <= sparsity.initial_level < 1, f"sparsity.initial_level: must be in [0, 1), got {sparsity.initial_level}")
    one_of("sparsity.new_moments", sparsity.new_moments, ("gradient", "zero"))
    update, defaults = sparsity.update, SparsityConfig()
    require(update.every >= 1, f"sparsity.update.every: must be 1 or more, got {update.every}")
    require(update.start >= 0, f"sparsity.update.start: must not be negative, got {update.start}")
    fraction = sparsity.drop_fraction
    require(0 < fraction < 1, f"sparsity.drop_fraction: must be between 0 and 1, got {fraction}")
    require(
        sparsity.groups is None or sparsity.groups >= 1, f"sparsity.groups: must be 1 or more, got {sparsity.groups}"
    )
    for key in ("update", "drop_fraction", "groups", "new_moments"):
        changed = sparsity.algorithm == "static" and getattr(sparsity, key) != getattr(defaults, key)
        require(not changed, f"sparsity.{key}: has no effect without sparsity.algorithm=set, rigl or gmp")
    patterns = [parse_pattern(text) for text in (sparsity.pattern, *sparsity.patterns.values())]
    require(
        not sparsity.permute or any(pattern.block > 1 for pattern in patterns),
        f"sparsity.permute: means nothing for {sparsity.pattern}; it goes with block:B and balanced:B",
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
    require(parallel.tensor >= 1, f"parallel.tensor: must be 1 or more, got {parallel.tensor}")
    require(parallel.data is None or parallel.data >= 1, f"parallel.data: must be 1 or more, got {parallel.data}")
    require(not parallel.sequence or parallel.tensor > 1, "parallel.sequence: needs parallel.tensor of 2 or more")
    require(
        0 < parallel.timeout_minutes < 1e6,
        f"parallel.timeout_minutes: must be positive and finite, got {parallel.timeout_minutes}",
    )
    require(parallel.zero_stage in (0, 1, 2, 3), f"parallel.zero_stage: must be 0 to 3, got {parallel.zero_stage}")
    if parallel.zero_stage == 3:
        require(
            config.deepspeed is None,
            "deepspeed: has no effect with parallel.zero_stage=3, for which torch's FSDP2 takes DeepSpeed's place",
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
    one_of("device", config.device, ("auto", "cpu", "cuda"))
    one_of("training.precision", config.training.precision, ("fp32", "bf16"))
    validate_parallel(config)
    training = config.training
    for key in ("global_batch_size", "micro_batch_size"):
        require(getattr(training, key) >= 1, f"training.{key}: must be 1 or more, got {getattr(training, key)}")
    for key in ("lr", "eps"):
        value = getattr(training, key)
        require(0 < value < math.inf, f"training.{key}: must be positive and finite, got {value}")
    for key in ("weight_decay", "clip_grad"):
        value = getattr(training, key)
        require(0 <= value < math.inf, f"training.{key}: must be finite and not negative, got {value}")
    one_of("training.optimizer", training.optimizer, ("adamw", "muon"))
    idle = training.optimizer != "muon" and training.muon_momentum != TrainingConfig().muon_momentum
    require(not idle, "training.muon_momentum: has no effect without training.optimizer=muon")
    for key in ("beta1", "beta2", "muon_momentum"):
        require(0 <= getattr(training, key) < 1, f"training.{key}: must be in [0, 1), got {getattr(training, key)}")
    budget = config.kernels.code_budget_mb
    require(budget >= 0, f"kernels.code_budget_mb: must not be negative, got {budget}")
    require(
        config.checkpoint.interval >= 1, f"checkpoint.interval: must be 1 or more, got {config.checkpoint.interval}"
    )
    require(config.checkpoint.keep >= 1, "checkpoint.keep: must be 1 or more")
    require(config.run_dir.strip() != "", "run_dir: is empty")
    if isinstance(config, PretrainConfig):
        validate_pretrain(config)
    else:
        validate_finetune(config)
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
    require(training.train_tokens >= 0, f"training.train_tokens: must not be negative, got {training.train_tokens}")
    require(training.warmup_tokens >= 0, f"training.warmup_tokens: must not be negative, got {training.warmup_tokens}")
    # The schedule counts whole steps: a budget that is rounded down may end within its warm-up.
    tokens = total_steps(config) * tokens_per_step(config)
    require(
        training.warmup_tokens < max(tokens, 1),
        f"training.warmup_tokens: {training.warmup_tokens} leaves nothing of "
        f"training.train_tokens {training.train_tokens}, which are {total_steps(config)} steps, {tokens} tokens",
    )
    spike = training.skip_loss_spike
    require(spike == 0 or spike > 1, f"training.skip_loss_spike: must be more than 1, or 0 for off, got {spike}")
    spike = training.skip_grad_norm_spike
    require(spike == 0 or spike > 1, f"training.skip_grad_norm_spike: must be more than 1, or 0 for off, got {spike}")
    most = training.max_skipped_in_a_row
    require(most >= 0, f"training.max_skipped_in_a_row: must not be negative, got {most}")
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
    one_of("training.schedule", training.schedule, ("cosine", "linear", "constant", "wsd"))
    one_of("training.cooldown_shape", training.cooldown_shape, ("linear", "sqrt"))
    defaults = TrainingConfig()
    for key in ("cooldown_fraction", "cooldown_shape"):  # a `constant` run may share the settings of its wsd branches
        idle = training.schedule in ("cosine", "linear") and getattr(training, key) != getattr(defaults, key)
        require(not idle, f"training.{key}: has no effect without training.schedule=wsd")
    idle = training.init_from is None and set(training.reset) != set(defaults.reset)
    require(not idle, "training.reset: has no effect without training.init_from")
    if training.schedule == "wsd":
        fraction = training.cooldown_fraction
        require(0 < fraction <= 1, f"training.cooldown_fraction: must be in (0, 1], got {fraction}")
        require(
            training.warmup_tokens <= (1 - fraction) * tokens or tokens == 0,
            f"training.cooldown_fraction: the last {fraction:g} of {tokens} tokens begins within the warm-up of "
            f"{training.warmup_tokens}",
        )
    require(0 <= training.min_lr_ratio <= 1, f"training.min_lr_ratio: must be in [0, 1], got {training.min_lr_ratio}")
    require(config.validation.interval >= 1, "validation.interval: must be 1 or more")
    require(config.validation.batches >= 1, "validation.batches: must be 1 or more")
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
    training, defaults = config.training, TrainingConfig()
    one_of("training.parameterization", training.parameterization, ("standard", "supar"))
    one_of("training.weight_decay_scaling", training.weight_decay_scaling, ("none", "product"))
    positive = ("embedding_multiplier", "output_multiplier", "attention_multiplier", "embedding_lr_multiplier")
    for key in (*positive, "init_std", "base_hidden_size", "base_ffn_hidden_size", "base_num_layers"):
        value = getattr(training, key)
        require(value is None or 0 < value < math.inf, f"training.{key}: must be positive and finite, got {value}")
    if training.parameterization == "standard":
        for key in SUPAR_KEYS:
            require(
                getattr(training, key) == getattr(defaults, key),
                f"training.{key}: has no effect without training.parameterization=supar",
            )
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


def validate_finetune(config: FinetuneConfig) -> None:
    """Check the keys that only fine-tuning has. Raises UserError."""
    task = config.finetune
    one_of("finetune.task", task.task, tuple(task_names()))
    one_of("sparsity.execution", config.sparsity.execution, ("masked", "compressed", "auto"))
    require(task.epochs >= 1, f"finetune.epochs: must be 1 or more, got {task.epochs}")
    most = task.max_steps
    require(most is None or most >= 1, f"finetune.max_steps: must be 1 or more, got {most}")
    require(task.warmup_steps >= 0, f"finetune.warmup_steps: must not be negative, got {task.warmup_steps}")
    require(0 <= task.label_smoothing < 1, f"finetune.label_smoothing: must be in [0, 1), got {task.label_smoothing}")
    require(0 <= task.dropout < 1, f"finetune.dropout: must be in [0, 1), got {task.dropout}")
    require(task.max_length >= 2, f"finetune.max_length: must be 2 or more, got {task.max_length}")


def require_inputs(config: FinetuneConfig) -> None:
    """Raise UserError without a checkpoint and training file, which shipped configs leave to the command line."""
    task = config.finetune
    require(task.checkpoint != "", "finetune.checkpoint: is not set: the run folder or checkpoint to start from")
    require(task.train != "", "finetune.train: is not set: the task's training file")
