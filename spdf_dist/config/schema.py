"""The config tree: typed, immutable, every key documented. Units: tokens are target tokens, batches are sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

PathText = Annotated[str, "path"]
"""A path as text; a leading `~` is the home folder."""

LOGICAL_WEIGHTS = ("W_Q", "W_K", "W_V", "W_D", "W_I", "W_O")
"""The six matrices of a layer that the paper sparsifies (appendix A.1), each of shape [out, in]."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of rotary positions, by which a model reads longer contexts than it was trained on."""

    factor: float = 8.0
    """Wavelengths beyond the original context are multiplied by this."""
    low_freq_factor: float = 1.0
    """Wavelengths above original_max_position_embeddings / low_freq_factor are scaled in full."""
    high_freq_factor: float = 4.0
    """Wavelengths below original_max_position_embeddings / high_freq_factor are not scaled; between is interpolated."""
    original_max_position_embeddings: int = 8192
    """Context window before the scaling, tokens."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer (paper, Table 1, is GPT-2)."""

    family: str = "gpt2"
    """Architecture: `gpt2` or `llama`."""
    num_layers: int = 4
    """Decoder layers."""
    hidden_size: int = 256
    """Width d of the residual stream."""
    num_attention_heads: int = 4
    """Attention heads; divides hidden_size."""
    num_key_value_heads: int | None = None
    """Heads of keys and values, each shared by a group of attention heads; null is num_attention_heads."""
    ffn_hidden_size: int | None = None
    """Width of the MLP; null is 4 x hidden_size."""
    seq_length: int = 256
    """Context window, tokens."""
    vocab_size: int = 4096
    """Tokens that the tokenizer knows; padding for tensor parallelism is added inside and never counted."""
    dropout: float = 0.0
    """Probability of dropping an activation, on embeddings, attention weights and residual branches."""
    norm_eps: float = 1e-5
    """Added to the variance in each norm."""
    rope_theta: float | None = None
    """Base of the rotary positions' wavelengths; null is the family's default."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's scaling of rotary positions; null is none."""
    tie_embeddings: bool = True
    """Whether the output layer is the word embedding."""

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values, resolved."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn(self) -> int:
        """The MLP's width, resolved."""
        return self.ffn_hidden_size or 4 * self.hidden_size


@dataclass(frozen=True)
class MaskUpdateConfig:
    """When the masks of a dynamic method change."""

    every: int = 100
    """Optimizer steps between updates."""
    start: int = 0
    """First step that may end with an update."""
    stop: int | None = None
    """First step that may not; null is three quarters of the run's steps."""


@dataclass(frozen=True)
class SparsityConfig:
    """Which weights are sparse, and how their masks are made (paper, section 3 and appendix A.1)."""

    level: float = 0.0
    """Fraction of each target's weights that is pruned, in [0, 1); 0 is a dense model."""
    pattern: str = "unstructured"
    """`unstructured` (the paper's), `block:B` (random B x B blocks), `balanced:B` (random blocks, equally many in each
    block row and in each block column), `N:M` (N of every M inputs kept), a .safetensors file of masks by weight name,
    or `init_from` (the masks of the checkpoint training.init_from)."""
    permute: bool = False
    """With a block pattern: permute the inputs and outputs of each layer's blocks at random."""
    distribution: str = "uniform"
    """`uniform` (each weight has `level`) or `er` (Erdos-Renyi: densities go as (in + out) / (in * out), `level` is the
    mean over the weights that `levels` does not name)."""
    levels: dict[str, float] = field(default_factory=dict)
    """Glob over weight names (`layers.0.*`, `*.W_O`, `W_Q`) -> level, in place of `level`; the first match counts."""
    patterns: dict[str, str] = field(default_factory=dict)
    """Glob over weight names -> pattern, in place of `pattern`; the first match counts."""
    seed: int = 1234
    """Seed of the masks; independent of `seed`."""
    execution: str = "auto"
    """`masked` (dense weights with zeros), `compressed` (non-zeros only), or `auto` (the faster, measured once)."""
    targets: list[str] = field(default_factory=lambda: list(LOGICAL_WEIGHTS))
    """Which logical weights are sparse; by default all matrices of the family (docs/model_families.md)."""
    init_scale: str = "none"
    """`none` (the paper's) or `fan_in`: multiply the kept initial weights by 1/sqrt(density)."""
    algorithm: str = "static"
    """`static` (the paper's), `set` (entries of small magnitude make place for random ones), `rigl` (for those of the
    largest gradient) or `gmp` (the level changes during the run, and the largest magnitudes stay)."""
    update: MaskUpdateConfig = field(default_factory=MaskUpdateConfig)
    initial_level: float = 0.0
    """gmp: the level before the first update; `level` is the last."""
    schedule: str = "cubic"
    """gmp: how the level goes from initial_level to level over the updates: `linear`, `cosine`, `exponential` (of the
    density), `cubic` or `list`."""
    schedule_levels: list[float] = field(default_factory=list)
    """gmp with `list`: the level after each update."""
    drop_fraction: float = 0.3
    """set, rigl: the share of kept entries that the first update swaps; it falls to 0 at update.stop by a cosine."""
    groups: int | None = None
    """set, rigl: each weight's rows (columns of residual outputs) are so many stretches of constant counts;
    parallel.tensor divides it. null: the largest divisor of the heads, 16 at most, that divides all weights."""
    new_moments: str = "gradient"
    """set, rigl: second moment of a grown entry: `gradient` (its squared gradient with rigl, the mean of its row with
    set) or `zero`, after which AdamW's first steps are several times too long."""

    @property
    def is_sparse(self) -> bool:
        """Whether any weight may have a mask."""
        others = (self.initial_level, *self.schedule_levels, *self.levels.values())
        return self.level > 0 or any(level > 0 for level in others)


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks divide the work; world size = tensor x data."""

    tensor: int = 1
    """Ranks that share each layer's matrices."""
    sequence: bool = False
    """Divide the tokens among the tensor ranks outside the matrices too, which saves activations."""
    data: int | None = None
    """Ranks that share each batch; null: world size / tensor under a launcher, else the node's GPUs / tensor, or 1."""
    timeout_minutes: float = 30.0
    """Longest that one collective operation may take before the ranks give up; all wait while rank 0 saves."""
    zero_stage: int = 1
    """DeepSpeed ZeRO: 0 none, 1 optimizer state, 2 gradients as well are divided among the data ranks."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimization of pre-training (paper, appendix A.1)."""

    train_tokens: int = 1_000_000
    """Token budget; 0 saves the initialised model as step 0."""
    global_batch_size: int = 8
    """Sequences an optimizer step, over all ranks."""
    micro_batch_size: int = 8
    """Sequences a forward pass on one rank."""
    lr: float = 6e-4
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """Learning rate at the last token, as a fraction of the peak."""
    warmup_tokens: int = 0
    """Tokens of linear warm-up; less than train_tokens."""
    schedule: str = "cosine"
    """After the warm-up: `cosine` (the paper's) or `linear` to min_lr_ratio, `constant`, or `wsd` (constant, then a
    cooldown to min_lr_ratio)."""
    cooldown_fraction: float = 0.2
    """Share of train_tokens that the cooldown of `wsd` takes."""
    cooldown_shape: str = "linear"
    """Shape of the cooldown: `linear` or `sqrt` (1 - sqrt of the progress)."""
    init_from: str | None = None
    """A checkpoint (step_N) or a run folder to start from, sparse or dense; null: new weights. Weights are taken where
    the masks keep them; what a mask had pruned starts at zero."""
    reset: list[str] = field(default_factory=lambda: ["optimizer", "schedule", "data"])
    """What begins anew with init_from: `optimizer` (moments and step count), `schedule` (steps and learning rate) and
    `data` (the place in the training data). What is not named goes on from the checkpoint."""
    weight_decay: float = 0.1
    """Decay of linear weights and embeddings; norms and biases do not decay."""
    embedding_lr_multiplier: float = 1.0
    """Multiplies the learning rate of the embeddings. One rate for all tensors is held down by the hidden matrices."""
    parameterization: str = "standard"
    """`standard` (the paper's) or `supar`, which keeps the best lr and init_std over widths and densities."""
    base_hidden_size: int | None = None
    """supar: the width at which lr and init_std were tuned."""
    base_ffn_hidden_size: int | None = None
    """supar: the MLP's width there; null: it grows with the width."""
    base_num_layers: int | None = None
    """supar: adds CompleteP's depth rule, with the number of layers at which lr was tuned; null: no depth rule."""
    init_std: float | None = None
    """Standard deviation of the initial weights, of the base model with supar; null is the family's, 0.02."""
    embedding_multiplier: float = 1.0
    """supar: multiplies the embeddings' output."""
    output_multiplier: float = 1.0
    """supar: multiplies the logits, beside base width / width."""
    attention_multiplier: float = 1.0
    """supar: attention scores are scaled by attention_multiplier / head size."""
    weight_decay_scaling: str = "none"
    """supar: `none`, or `product`: decay grows as the learning rate falls, so that their product is the base's."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_grad: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 is no clipping."""
    precision: str = "fp32"
    """`fp32` or `bf16` (bf16 needs zero_stage 1 or more; gradients accumulate in fp32)."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    deterministic: bool = False
    """Same bits on every run also on a GPU, at a cost in speed (a CPU always is)."""
    skip_loss_spike: float = 0.0
    """Skip an update whose loss exceeds this multiple of the median of the last 64; 0 is off."""
    skip_grad_norm_spike: float = 0.0
    """Skip an update whose gradient norm exceeds this multiple of the median of the last 64; 0 is off."""
    max_skipped_in_a_row: int = 25
    """Skipped updates in a row after which the run stops, exit code 3, and names its last checkpoint; 0: never."""


@dataclass(frozen=True)
class DatasetEntry:
    """A packed dataset and its share of the batches."""

    path: PathText
    """A folder written by `spdf data pack`, or the prefix of Megatron .bin/.idx files."""
    weight: float = 1.0
    """Relative share of the sequences drawn."""


@dataclass(frozen=True)
class DataConfig:
    """Packed pre-training data."""

    train: list[DatasetEntry] = field(default_factory=list)
    """A path, a list of paths, or a list of {path, weight}."""
    validation: list[DatasetEntry] = field(default_factory=list)
    """The same, for the validation loss; empty is no validation."""
    tokenizer: PathText | None = None
    """A .model file or a folder with encoder.json and vocab.bpe; null takes the one kept with the packed data."""


@dataclass(frozen=True)
class CheckpointConfig:
    interval: int = 500
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    asynchronous: bool = False
    """Copy the state to host memory (12 bytes for each parameter of a rank) and write it while training goes on."""


@dataclass(frozen=True)
class ValidationConfig:
    interval: int = 100
    """Optimizer steps between validations."""
    batches: int = 8
    """Global batches a validation."""


@dataclass(frozen=True)
class KernelsConfig:
    code_budget_mb: int = 1024
    """Most memory for generated kernel code on one rank, MiB; layers beyond it take the compact kernels."""


@dataclass(frozen=True)
class PretrainConfig:
    """Everything `spdf pretrain` needs."""

    run_dir: PathText = "runs/pretrain"
    """The run's folder; starting it again continues it."""
    seed: int = 1234
    """Seeds initialisation, data order and dropout, each through a domain of its own."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    deepspeed: dict[str, Any] | PathText | None = None
    """A DeepSpeed JSON file (or its content) to merge in; a key that this config sets too is an error."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Further observers by name (entry points of the group `spdf.callbacks`), each with its options."""


@dataclass(frozen=True)
class TaskConfig:
    """What is fine-tuned, on what, and for how long. Defaults are LoRA's E2E recipe (Hu et al., 2022)."""

    checkpoint: PathText = ""
    """A checkpoint (step_N) or a run folder, whose newest whole checkpoint is taken; densified on load."""
    task: str = "e2e"
    """`e2e`, `webnlg`, `dart` or `curation`."""
    train: PathText = ""
    """The task's training file."""
    validation: PathText = ""
    """The task's validation file."""
    epochs: int = 5
    """Passes over the training file (paper, appendix A.2)."""
    max_steps: int | None = None
    """Optimizer steps at the most, also when `epochs` are not over; the learning rate reaches zero there."""
    warmup_steps: int = 500
    """Optimizer steps of linear warm-up before the linear decay to zero."""
    label_smoothing: float = 0.1
    """Of the training loss; the validation loss is never smoothed."""
    max_length: int = 512
    """Longest context + target, tokens."""
    patience: int = 1
    """Stop after this many epochs without a better validation loss; 0 never stops early."""
    dropout: float = 0.1
    """Replaces the checkpoint's."""
    keep_mask: bool = False
    """Fine-tune sparse, as a control, instead of dense."""


@dataclass(frozen=True)
class FinetuneTrainingConfig:
    """Optimization of fine-tuning. Defaults are LoRA's E2E recipe where the paper is silent (appendix A.2)."""

    global_batch_size: int = 8
    """Examples an optimizer step, over all ranks."""
    micro_batch_size: int = 8
    """Examples a forward pass on one rank."""
    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decay of linear weights and embeddings; norms and biases do not decay."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_grad: float = 0.0
    """Global gradient norm above which gradients are scaled down; 0 is no clipping."""
    precision: str = "fp32"
    """`fp32` or `bf16`."""
    activation_checkpointing: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class FinetuneSparsityConfig:
    execution: str = "auto"
    """Used with finetune.keep_mask: `masked`, `compressed` or `auto`."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything `spdf finetune` needs; the architecture comes from the checkpoint."""

    run_dir: PathText = "runs/finetune"
    seed: int = 1234
    """Seeds batch order and dropout."""
    device: str = "auto"
    deepspeed: dict[str, Any] | PathText | None = None
    finetune: TaskConfig = field(default_factory=TaskConfig)
    sparsity: FinetuneSparsityConfig = field(default_factory=FinetuneSparsityConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    training: FinetuneTrainingConfig = field(default_factory=FinetuneTrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(interval=1000, keep=1))
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Further observers by name (entry points of the group `spdf.callbacks`), each with its options."""


AnyConfig = PretrainConfig | FinetuneConfig
