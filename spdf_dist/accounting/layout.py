"""How a run is laid out over ranks, and how many elements of each kind one rank holds.

Non-zeros of a rank are the mean over tensor ranks: random masks give each rank a few more or fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

from spdf_dist.accounting.parameters import linear_nonzeros, linear_shapes
from spdf_dist.config.schema import ModelConfig, PretrainConfig, SparsityConfig

VOCABULARY_MULTIPLE = 8
"""Each tensor rank's share of the padded vocabulary is a multiple of this, as in the model."""
STACKED = (("W_Q", "W_K", "W_V"), ("W_D",), ("W_I",), ("W_O",))
"""Logical weights that are one parameter: a stack is sparse when any of them is."""
ALIGNMENT = 2
"""DeepSpeed pads each group of parameters to a multiple of this times the data ranks."""


@dataclass(frozen=True)
class Layout:
    """Ranks, and how much one of them takes at a time."""

    tensor: int
    data: int
    zero_stage: int
    micro_batch: int
    """Sequences a forward pass."""
    execution: str
    """`dense`, `masked` or `compressed`."""
    precision: str
    """`fp32` or `bf16`."""
    activation_checkpointing: bool

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.precision == "bf16" else 4

    def accumulation(self, global_batch: int) -> int:
        """Micro-batches of a rank in one optimizer step."""
        return global_batch // (self.micro_batch * self.data)


def layout_of(config: PretrainConfig, world_size: int, device: str = "cuda") -> Layout:
    """The layout that a config asks for on ``world_size`` ranks; `auto` execution is masked on a GPU."""
    tensor = config.parallel.tensor
    execution = config.sparsity.execution
    if not config.sparsity.is_sparse:
        execution = "dense"
    elif execution == "auto":
        execution = "masked" if device == "cuda" else "compressed"
    return Layout(
        tensor=tensor,
        data=world_size // tensor,
        zero_stage=config.parallel.zero_stage,
        micro_batch=config.training.micro_batch_size,
        execution=execution,
        precision=config.training.precision,
        activation_checkpointing=config.training.activation_checkpointing,
    )


@dataclass(frozen=True)
class LocalElements:
    """Elements on one tensor rank, before any division among data ranks."""

    decayed: int
    """Parameters with weight decay: linears (values alone where compressed) and embeddings."""
    undecayed: int
    """Norms and biases."""
    masked: int
    """Entries of dense weights that carry a mask."""
    compressed: int
    """Entries of weights of which only the values are held."""
    nonzeros: int
    """Kept entries of those."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.decayed + self.undecayed

    def padded(self, data: int) -> int:
        """Parameters with DeepSpeed's padding of its two groups."""
        step = ALIGNMENT * data
        return sum(-(-count // step) * step for count in (self.decayed, self.undecayed))


def padded_vocabulary(vocab_size: int, tensor: int) -> int:
    """Rows of the word embedding over all tensor ranks."""
    multiple = VOCABULARY_MULTIPLE * tensor
    return -(-vocab_size // multiple) * multiple


def local_elements(model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout) -> LocalElements:
    """What one tensor rank holds."""
    n, d, t = model.num_layers, model.hidden_size, layout.tensor
    shapes, kept = linear_shapes(model), linear_nonzeros(model, sparsity)
    linears = masked = compressed = nonzeros = 0
    for stack in STACKED:
        numel = n * sum(shapes[name][0] * shapes[name][1] for name in stack)
        is_sparse = sparsity is not None and sparsity.is_sparse and any(name in sparsity.targets for name in stack)
        if not is_sparse or layout.execution in ("dense", "masked"):
            linears += numel
            masked += numel if is_sparse and layout.execution == "masked" else 0
        else:
            values = sum(kept[name] for name in stack)
            linears += values
            nonzeros += values
            compressed += numel
    words = padded_vocabulary(model.vocab_size, t) // t * d
    divided_biases = 3 * d + model.ffn
    return LocalElements(
        decayed=linears // t + words + model.seq_length * d,
        undecayed=n * (divided_biases // t + 2 * d) + (2 * n + 1) * 2 * d,
        masked=masked // t,
        compressed=compressed // t,
        nonzeros=nonzeros // t,
    )
