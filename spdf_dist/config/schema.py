"""The config tree: typed and immutable, with a documentation string for every key.

Units: tokens are target tokens; batch sizes count sequences. The strings below the fields are published as the
configuration reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from spdf_dist.config.values import (
    Between,
    Count,
    Finite,
    NotNegative,
    PathText,
    Positive,
    Range,
    Share,
    Size,
    Spike,
    ToOne,
)

Execution = Literal["masked", "compressed", "auto"]

LOGICAL_WEIGHTS = ("W_Q", "W_K", "W_V", "W_D", "W_I", "W_O")
"""The six matrices of a layer that the paper sparsifies (appendix A.1), each of shape [out, in]."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of rotary positions. It lets a model read longer contexts than it was trained on."""

    factor: float = 8.0
    """Factor by which long wavelengths are multiplied."""
    low_freq_factor: float = 1.0
    """Wavelengths above original_max_position_embeddings / low_freq_factor are scaled by the full factor."""
    high_freq_factor: float = 4.0
    """Wavelengths below original_max_position_embeddings / high_freq_factor are not scaled. Wavelengths between the two
    limits are interpolated."""
    original_max_position_embeddings: int = 8192
    """Context window before the scaling, in tokens."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. The models of the paper (Table 1) are of the family GPT-2."""

    family: str = "gpt2"
    """Model family: `gpt2` or `llama`."""
    num_layers: Size = 4
    """Number of decoder layers."""
    hidden_size: Size = 256
    """Width of the residual stream."""
    num_attention_heads: Size = 4
    """Number of attention heads; it must divide hidden_size."""
    num_key_value_heads: int | None = None
    """Number of key and value heads (grouped-query attention); it must divide num_attention_heads. null: the same as
    num_attention_heads."""
    ffn_hidden_size: Size | None = None
    """Width of the MLP. null: 4 x hidden_size."""
    seq_length: Size = 256
    """Context window, in tokens."""
    vocab_size: Size = 4096
    """Size of the vocabulary. Padding for tensor parallelism is added internally and is never counted."""
    dropout: Share = 0.0
    """Dropout probability on embeddings, attention weights and residual branches."""
    norm_eps: Between = 1e-5
    """Epsilon that is added to the variance (LayerNorm) or the mean square (RMSNorm) in each norm."""
    rope_theta: float | None = None
    """Base of the rotary positions' wavelengths. null: the default of the family."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's scaling of rotary positions. null: no scaling."""
    tie_embeddings: bool = True
    """Whether the output layer shares the weights of the word embedding."""

    @property
    def key_value_heads(self) -> int:
        """The number of key and value heads, with null resolved."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn(self) -> int:
        """The width of the MLP, with null resolved."""
        return self.ffn_hidden_size or 4 * self.hidden_size


@dataclass(frozen=True)
class MaskUpdateConfig:
    """When a dynamic method updates the masks."""

    every: Count = 100
    """Optimizer steps between two updates."""
    start: NotNegative = 0
    """First step after which an update is allowed."""
    stop: int | None = None
    """First step after which no update is allowed any longer. null: three quarters of the run's steps."""


@dataclass(frozen=True)
class SparsityConfig:
    """Which weights are sparse, and how the masks are made (paper, section 3 and appendix A.1)."""

    level: Share = 0.0
    """Sparsity: the fraction of each target's weights that is pruned, in [0, 1). 0: a dense model."""
    pattern: str = "unstructured"
    """Pattern of the masks: `unstructured` (as in the paper), `block:B` (random B x B blocks), `balanced:B` (random
    B x B blocks, the same number in each block row and in each block column), `N:M` (N of every M inputs are kept), the
    path of a .safetensors file that holds a mask per weight name, or `init_from` (the masks of the checkpoint
    training.init_from)."""
    permute: bool = False
    """Block patterns only: permute the inputs and outputs of each layer's blocks at random."""
    distribution: Literal["uniform", "er"] = "uniform"
    """How sparsity is distributed over the weights: `uniform` (every weight has `level`) or `er` (Erdos-Renyi: the
    density of a weight is proportional to (in + out) / (in * out); `level` is the mean over the weights that `levels`
    does not match)."""
    levels: dict[str, float] = field(default_factory=dict)
    """Maps globs over weight names (`layers.0.*`, `*.W_O`, `W_Q`) to levels that replace `level`. The first match is
    used."""
    patterns: dict[str, str] = field(default_factory=dict)
    """Maps globs over weight names to patterns that replace `pattern`. The first match is used."""
    seed: int = 1234
    """Seed of the masks. It is independent of the top-level `seed`."""
    execution: Execution = "auto"
    """How sparse layers are computed: `masked` (dense weights that hold zeros), `compressed` (only the kept values are
    stored), or `auto` (the faster of the two, measured once per run)."""
    targets: list[str] = field(default_factory=lambda: list(LOGICAL_WEIGHTS))
    """Weights that are sparse. Default: all matrices of the family (docs/model_families.md)."""
    init_scale: Literal["none", "fan_in"] = "none"
    """Scaling of the initial weights: `none` (as in the paper) or `fan_in`, which multiplies the kept weights by
    1/sqrt(density)."""
    algorithm: Literal["static", "set", "rigl", "gmp"] = "static"
    """How masks change during training: `static` (they do not change, as in the paper), `set` (replaces entries of
    small magnitude by random ones), `rigl` (replaces them by the entries with the largest gradient) or `gmp` (gradual
    magnitude pruning: the level changes during the run, and the entries of largest magnitude are kept)."""
    update: MaskUpdateConfig = field(default_factory=MaskUpdateConfig)
    initial_level: Share = 0.0
    """gmp: the level before the first update. `level` is the level after the last update."""
    schedule: Literal["constant", "linear", "cosine", "exponential", "cubic", "list"] = "cubic"
    """gmp: the curve from `initial_level` to `level` over the updates: `linear`, `cosine`, `exponential` (in the
    density), `cubic`, or `list` (the values of `schedule_levels`)."""
    schedule_levels: list[float] = field(default_factory=list)
    """gmp with schedule `list`: the level after each update. The last value must equal `level`."""
    drop_fraction: Between = 0.3
    """set, rigl: the fraction of kept entries that an update swaps at the start of the run. It falls to 0 at
    `update.stop` along half a cosine."""
    groups: Count | None = None
    """set, rigl: the rows of each weight (the columns of residual outputs) are divided into this many groups, and the
    number of kept entries of each group stays constant. parallel.tensor must divide it. null: the largest number up to
    16 that divides the key and value heads and the rows or columns of all sparse weights."""
    new_moments: Literal["gradient", "zero"] = "gradient"
    """set, rigl: initial second moment of a new entry: `gradient` (with rigl its squared gradient, with set the mean of
    its row) or `zero`, with which AdamW's first updates of the entry are several times too large."""

    @property
    def is_sparse(self) -> bool:
        """Whether any weight may have a mask."""
        others = (self.initial_level, *self.schedule_levels, *self.levels.values())
        return self.level > 0 or any(level > 0 for level in others)


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks divide the work. The world size is tensor x data."""

    tensor: Count = 1
    """Number of tensor-parallel ranks, which divide each layer's matrices."""
    sequence: bool = False
    """Sequence parallelism: outside the matrices, divide the tokens among the tensor ranks. It saves activation memory.
    Tensor ranks must divide model.seq_length."""
    data: Count | None = None
    """Number of data-parallel ranks, which divide each batch. null: world size / tensor under a launcher; otherwise the
    node's GPUs / tensor, or 1 without GPUs."""
    timeout_minutes: Annotated[float, Range("must be finite and at least 0.05", lambda value: 0.05 <= value < 1e6)] = (
        30.0
    )
    """Time limit of one collective operation, in minutes. It must exceed the time that rank 0 needs to save a
    checkpoint, because the other ranks wait for it."""
    zero_stage: Annotated[int, Range("must be 0 to 3", lambda value: value in (0, 1, 2, 3))] = 1
    """ZeRO stage, which says what is divided among the data ranks: 0 nothing, 1 the optimizer state, 2 also the
    gradients, 3 also the parameters. DeepSpeed carries out stages 0 to 2, and torch's FSDP2 stage 3."""


@dataclass(frozen=True)
class OptimizationConfig:
    """Optimization of both pre-training and fine-tuning."""

    global_batch_size: Count = 8
    """Sequences, or examples of a task, per optimizer step, over all ranks."""
    micro_batch_size: Count = 8
    """Sequences, or examples of a task, per forward pass on one rank."""
    lr: Positive = 6e-4
    """Peak learning rate."""
    weight_decay: Finite = 0.1
    """Weight decay of linear weights and embeddings. Norms and biases do not decay."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw`, or `muon`: orthogonalised momentum for the matrices of the layers, AdamW for all other parameters
    (docs/methods.md)."""
    muon_momentum: Share = 0.95
    """muon: decay rate of the momentum of matrices."""
    beta1: Share = 0.9
    """AdamW: decay rate of the first moment."""
    beta2: Share = 0.999
    """AdamW: decay rate of the second moment."""
    eps: Positive = 1e-8
    """AdamW: added to the denominator of the update."""
    clip_grad: Finite = 1.0
    """Gradients are scaled down to this global norm if theirs is larger. 0: no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`fp32` or `bf16`. bf16 needs parallel.zero_stage 1, 2 or 3; gradients accumulate in fp32."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    deterministic: bool = False
    """Make runs on a GPU bitwise reproducible, which costs speed. Runs on a CPU always are."""


@dataclass(frozen=True)
class TrainingConfig(OptimizationConfig):
    """Optimization of pre-training (paper, appendix A.1)."""

    train_tokens: NotNegative = 1_000_000
    """Token budget of the run, rounded to whole steps. 0: save the initialised model as step 0."""
    min_lr_ratio: ToOne = 0.1
    """Learning rate at the last token, as a fraction of the peak. The schedule `constant` ignores it."""
    warmup_tokens: NotNegative = 0
    """Length of the linear warm-up, in tokens. It must be less than train_tokens."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after the warm-up: `cosine` (as in the paper) or `linear` decay to min_lr_ratio, `constant`, or
    `wsd` (constant, then a cooldown to min_lr_ratio)."""
    cooldown_fraction: float = 0.2
    """wsd: length of the cooldown, as a fraction of train_tokens."""
    cooldown_shape: Literal["linear", "sqrt"] = "linear"
    """wsd: shape of the cooldown, `linear` or `sqrt` (1 - sqrt(progress))."""
    init_from: str | None = None
    """A checkpoint (step_N) or a run folder to start from, sparse or dense. Its weights are used where the masks keep
    them; entries that the checkpoint had pruned start at zero. null: start from newly initialised weights."""
    reset: list[str] = field(default_factory=lambda: ["optimizer", "schedule", "data"])
    """With init_from: the state that is reset. Any of `optimizer` (moments and step count), `schedule` (steps and
    learning rate) and `data` (position in the training data). The rest continues from the checkpoint."""
    embedding_lr_multiplier: Positive = 1.0
    """Multiplies the learning rate of the embeddings. The hidden matrices limit a rate that all tensors share."""
    parameterization: Literal["standard", "supar"] = "standard"
    """`standard` (as in the paper) or `supar`, with which the best lr and init_std do not change with width and
    density."""
    base_hidden_size: Size | None = None
    """supar: the hidden_size at which lr and init_std were tuned."""
    base_ffn_hidden_size: Size | None = None
    """supar: the MLP width of that base model. null: the MLP width grows in proportion to hidden_size."""
    base_num_layers: Size | None = None
    """supar: the number of layers at which lr was tuned, for CompleteP's depth rule. null: no depth rule."""
    init_std: Positive | None = None
    """Standard deviation of the initial weights; with supar, that of the base model. null: the family's default,
    0.02."""
    embedding_multiplier: Positive = 1.0
    """supar: multiplies the output of the embeddings."""
    output_multiplier: Positive = 1.0
    """supar: multiplies the logits, in addition to the factor base_hidden_size / hidden_size."""
    attention_multiplier: Positive = 1.0
    """supar: attention scores are multiplied by attention_multiplier / head size."""
    weight_decay_scaling: Literal["none", "product"] = "none"
    """supar: `none` (weight decay does not depend on width and density), or `product` (weight decay is larger where the
    learning rate is smaller, so that their product stays that of the base model)."""
    skip_loss_spike: Spike = 0.0
    """Skip an update whose loss exceeds this multiple of the median of the last 64 losses. 0: off."""
    skip_grad_norm_spike: Spike = 0.0
    """Skip an update whose gradient norm exceeds this multiple of the median of the last 64 norms. 0: off."""
    max_skipped_in_a_row: NotNegative = 25
    """Number of consecutive skipped updates after which the run ends with exit code 3 and names its last checkpoint.
    0: never."""


@dataclass(frozen=True)
class DatasetEntry:
    """A packed data set and its share of the batches."""

    path: PathText
    """A folder written by `spdf data pack`, or the prefix of Megatron .bin/.idx files."""
    weight: float = 1.0
    """Relative share of the sequences that are drawn from it."""


@dataclass(frozen=True)
class DataConfig:
    """Packed pre-training data."""

    train: list[DatasetEntry] = field(default_factory=list)
    """Training data: a path, a list of paths, or a list of {path, weight}."""
    validation: list[DatasetEntry] = field(default_factory=list)
    """Validation data, in the same form. Empty: no validation."""
    tokenizer: PathText | None = None
    """Tokenizer: a .model file or a folder with encoder.json and vocab.bpe. null: the tokenizer that is kept with the
    packed data."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved."""

    interval: Count = 500
    """Optimizer steps between two checkpoints. The last step is always saved."""
    keep: Count = 2
    """Number of checkpoints that are kept; older ones are deleted."""
    asynchronous: bool = False
    """Copy the state to host memory (12 bytes per parameter of a rank) and write it while training continues."""


@dataclass(frozen=True)
class ValidationConfig:
    """When the validation loss is computed, and over how much data."""

    interval: Count = 100
    """Optimizer steps between two validations. The last step is always validated."""
    batches: Count = 8
    """Global batches per validation."""


@dataclass(frozen=True)
class KernelsConfig:
    """Limits of the CPU kernels."""

    code_budget_mb: NotNegative = 1024
    """Memory limit for generated kernel code per rank, in MiB. Layers whose code does not fit use the compact
    kernels."""


@dataclass(frozen=True)
class PretrainConfig:
    """The configuration of `spdf pretrain`."""

    run_dir: PathText = "runs/pretrain"
    """Folder of the run. A second start with the same folder continues the run."""
    seed: int = 1234
    """Seed of initialisation, data order and dropout, which have separate random streams."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, `cuda`, or `auto` (`cuda` if there is a GPU)."""
    deepspeed: dict[str, Any] | PathText | None = None
    """Further DeepSpeed settings: a JSON file or its content. A key that this configuration also sets is an error."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Additional callbacks by name (entry points of the group `spdf.callbacks`), each with its options."""


@dataclass(frozen=True)
class TaskConfig:
    """Checkpoint, task and length of the fine-tuning. The defaults are LoRA's E2E recipe (Hu et al., 2022)."""

    checkpoint: PathText = ""
    """The checkpoint to start from: a step_N folder, or a run folder, of which the newest complete checkpoint is used.
    Its masks are dropped when it is loaded, unless keep_mask is set."""
    task: str = "e2e"
    """Name of the task: `e2e`, `webnlg`, `dart`, `curation`, or one that an extension adds (docs/tasks.md)."""
    train: PathText = ""
    """Training file of the task."""
    validation: PathText = ""
    """Validation file of the task. Empty: no validation."""
    epochs: Count = 5
    """Passes over the training file (paper, appendix A.2)."""
    max_steps: Count | None = None
    """Limit on the number of optimizer steps. The learning rate reaches zero at the last step. null: no limit other
    than `epochs`."""
    warmup_steps: NotNegative = 500
    """Optimizer steps of linear warm-up before the linear decay to zero."""
    label_smoothing: Share = 0.1
    """Label smoothing of the training loss. The validation loss is never smoothed."""
    max_length: Annotated[int, Range("must be 2 or more", lambda value: value >= 2)] = 512
    """Maximum length of context and target together, in tokens."""
    patience: NotNegative = 1
    """Stop after this many epochs without a better validation loss. 0: never stop early."""
    dropout: Share = 0.1
    """Dropout probability; it replaces that of the checkpoint."""
    keep_mask: bool = False
    """Keep the checkpoint's masks: sparse fine-tuning, as a control for dense fine-tuning."""


@dataclass(frozen=True)
class FinetuneTrainingConfig(OptimizationConfig):
    """Optimization of fine-tuning (paper, appendix A.2). Values that the paper does not give are LoRA's E2E recipe."""

    lr: Positive = 1e-4
    weight_decay: Finite = 0.01
    clip_grad: Finite = 0.0


@dataclass(frozen=True)
class FinetuneSparsityConfig:
    """How sparse layers are computed where fine-tuning keeps the masks."""

    execution: Execution = "auto"
    """`masked`, `compressed` or `auto`. It is used only with finetune.keep_mask."""


@dataclass(frozen=True)
class FinetuneConfig:
    """The configuration of `spdf finetune`. The architecture comes from the checkpoint."""

    run_dir: PathText = "runs/finetune"
    """Folder of the run. A second start with the same folder continues the run."""
    seed: int = 1234
    """Seed of batch order and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, `cuda`, or `auto` (`cuda` if there is a GPU)."""
    deepspeed: dict[str, Any] | PathText | None = None
    """Further DeepSpeed settings: a JSON file or its content. A key that this configuration also sets is an error."""
    finetune: TaskConfig = field(default_factory=TaskConfig)
    sparsity: FinetuneSparsityConfig = field(default_factory=FinetuneSparsityConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    training: FinetuneTrainingConfig = field(default_factory=FinetuneTrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(interval=1000, keep=1))
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Additional callbacks by name (entry points of the group `spdf.callbacks`), each with its options."""


AnyConfig = PretrainConfig | FinetuneConfig
