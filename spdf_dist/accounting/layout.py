"""The layout of a run over ranks, and the number of elements of each kind that one rank holds.

The non-zeros of a rank are the mean over tensor ranks. With random masks, the number differs slightly between ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from spdf_dist.accounting.gpu_kernels import skipped_block
from spdf_dist.accounting.parameters import nonzeros
from spdf_dist.base.numbers import counted
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import AnyConfig, ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.config.validate import validate_batch
from spdf_dist.model.architecture import architecture_of
from spdf_dist.sparsity.assignment import sparse_weights
from spdf_dist.sparsity.masks import logical_weights

ALIGNMENT = 2
"""DeepSpeed pads each group of parameters to a multiple of this times the number of data ranks."""


@dataclass(frozen=True)
class Layout:
    """Numbers of ranks, and the settings that decide what one rank holds."""

    tensor: int
    data: int
    zero_stage: int
    micro_batch: int
    """Sequences per forward pass."""
    execution: str
    """`dense`, `masked` or `compressed`."""
    precision: str
    """`fp32` or `bf16`."""
    activation_checkpointing: bool
    sequence: bool = False
    """Whether the tensor ranks divide the tokens outside the linear layers (sequence parallelism)."""
    optimizer: str = "adamw"
    """`adamw` or `muon`."""

    @property
    def value_bytes(self) -> int:
        """Bytes per weight or activation."""
        return 2 if self.precision == "bf16" else 4

    def accumulation(self, global_batch: int) -> int:
        """Micro-batches per rank and optimizer step."""
        return global_batch // (self.micro_batch * self.data)


def layout_of(config: PretrainConfig, world_size: int, device: str = "cuda") -> Layout:
    """The layout of a pre-training config on ``world_size`` ranks."""
    return layout_for(config, config.model, config.sparsity, world_size, device)


def layout_for(
    config: AnyConfig, model: ModelConfig, sparsity: SparsityConfig | None, world_size: int, device: str
) -> Layout:
    """The layout of a run that trains ``model`` with ``sparsity`` (None: dense) on ``world_size`` ranks.

    `auto` execution is compressed on a CPU and on a GPU whose kernels skip the mask's blocks, else masked.
    """
    tensor = config.parallel.tensor
    execution: str = config.sparsity.execution
    if sparsity is None or not sparsity.is_sparse:
        execution = "dense"
    elif execution == "auto":
        skips = device != "cuda" or skipped_block(model, sparsity, config.training.precision, tensor)
        execution = "compressed" if skips else "masked"
    return Layout(
        tensor=tensor,
        data=world_size // tensor,
        zero_stage=config.parallel.zero_stage,
        micro_batch=config.training.micro_batch_size,
        execution=execution,
        precision=config.training.precision,
        activation_checkpointing=config.training.activation_checkpointing,
        sequence=config.parallel.sequence,
        optimizer=config.training.optimizer,
    )


def valid_layout(
    config: AnyConfig, model: ModelConfig, sparsity: SparsityConfig | None, world_size: int, device: str
) -> Layout:
    """The layout of a run. Raises UserError if the ranks or the batch cannot be divided."""
    tensor = config.parallel.tensor
    if world_size % tensor:
        raise UserError(f"parallel.tensor: {tensor} does not divide {counted(world_size, 'rank')}")
    layout = layout_for(config, model, sparsity, world_size, device)
    validate_batch(config, layout.data)
    return layout


@dataclass(frozen=True)
class LocalElements:
    """Elements on one tensor rank, before any division among data ranks."""

    matrices: int
    """Parameters of the matrices of the layers; only the kept values where compressed."""
    others: int
    """Other parameters with weight decay: embeddings and the output layer."""
    undecayed: int
    """Norms and biases."""
    masked: int
    """Entries of dense weights with a mask."""
    compressed: int
    """Entries, kept and pruned, of weights whose kept values only are stored."""
    nonzeros: int
    """Kept entries of these compressed weights."""
    layer: int
    """Parameters of one layer."""
    ends: int
    """Parameters outside the layers: embeddings, the output layer and the last norm."""

    @property
    def parameters(self) -> int:
        """All trainable values that the rank holds."""
        return self.matrices + self.others + self.undecayed

    def padded(self, data: int, optimizer: str = "adamw") -> int:
        """Parameters including DeepSpeed's padding of its parameter groups. Muon has a group for matrices."""
        together = (self.matrices + self.others, self.undecayed)
        apart = (self.matrices, self.others, self.undecayed)
        return sum(padded(count, data) for count in (apart if optimizer == "muon" else together))


def padded(count: int, data: int) -> int:
    """Elements of a parameter group with DeepSpeed's padding for ``data`` ranks."""
    step = ALIGNMENT * data
    return -(-count // step) * step


def local_elements(model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout) -> LocalElements:
    """The elements of one tensor rank. A parameter that stacks several weights is sparse when any of them is."""
    kept = nonzeros(model, sparsity)
    sparse = sparse_weights(logical_weights(model), sparsity) if sparsity is not None and sparsity.is_sparse else {}
    matrices = others = undecayed = masked = compressed = values = ends = 0
    for stacked in architecture_of(model).by_parameter().values():
        is_sparse = any(tensor.name in sparse for tensor in stacked)
        elements = sum(tensor.local_numel(layout.tensor) for tensor in stacked)
        ends += 0 if stacked[0].name.startswith("layers.") else elements
        if is_sparse and layout.execution == "compressed":
            compressed += elements
            values += sum(kept[tensor.name] for tensor in stacked)  # sum over all ranks; divided below
        elif stacked[0].is_hidden_matrix:
            matrices += elements
            masked += elements if is_sparse and layout.execution == "masked" else 0
        elif stacked[0].decays:
            others += elements
        else:
            undecayed += elements
    values //= layout.tensor
    layer = (matrices + values + undecayed + others - ends) // model.num_layers
    return LocalElements(matrices + values, others, undecayed, masked, compressed, values, layer, ends)
