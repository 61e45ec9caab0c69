"""The parts of global tensors that a local parameter holds.

The global tensors of a model are listed in its family's ``architecture.py``. A parameter of the model has the attribute
``shards``: the parts that are stacked in it along its first dimension. The fused QKV weight has three. The kept values
of a sparse shard are in row-major order of this rank's slice of the global mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorShard:
    """A slice of one global tensor and its position in a local parameter."""

    name: str
    """Name of the global tensor."""
    shape: tuple[int, ...]
    """Global shape, without vocabulary padding."""
    dim: int | None
    """Dimension that tensor parallelism divides; None: every tensor rank holds the whole tensor."""
    start: int
    """First index along ``dim`` that this rank holds; 0 if ``dim`` is None."""
    stop: int
    """One past the last index that this rank holds, without padding rows."""
    offset: int
    """Start of the shard in the stored parameter: a row, or an element if kept values are stored."""
    length: int
    """Number of rows, or of elements, of the shard in the stored parameter."""
    mask_source: Tensor | Callable[[], Tensor] | None = None
    """The mask, or a function that makes it. A compressed layer passes a function, because it stores one bit per weight
    and a bool mask would take one byte per weight."""

    @property
    def mask(self) -> Tensor | None:
        """This rank's slice of the global mask, bool [out, in]; None for dense tensors."""
        source = self.mask_source
        return source if source is None or isinstance(source, Tensor) else source()

    @property
    def sparse(self) -> bool:
        """Whether the shard has a mask; this does not make the mask."""
        return self.mask_source is not None

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the slice."""
        shape = list(self.shape)
        if self.dim is not None:
            shape[self.dim] = self.stop - self.start
        return tuple(shape)


def split_shards(shards: tuple[TensorShard, ...], stored: Tensor) -> Iterator[tuple[TensorShard, Tensor]]:
    """Each shard with its content in ``stored``, which is the local parameter or a tensor of its shape (a moment).

    The content of a dense shard has its ``local_shape``. That of a sparse shard is a slice of ``stored``: rows of a
    masked weight, or kept values [nnz] of a compressed one.
    """
    for shard in shards:
        part = stored.narrow(0, shard.offset, shard.length)
        yield shard, part if shard.sparse else part.reshape(shard.local_shape)


def join_shards(shards: tuple[TensorShard, ...], contents: dict[str, Tensor], stored: Tensor) -> None:
    """Copy the contents of the shards into ``stored``, in place.

    ``contents`` maps global names to dense slices or, for sparse shards, to the kept values [nnz]. Pruned entries and
    padding become zero.
    """
    stored.zero_()
    for shard in shards:
        part = stored.narrow(0, shard.offset, shard.length)
        content = contents[shard.name].to(stored)
        if shard.sparse and stored.dim() > 1:
            part[shard.mask] = content
        else:
            part.copy_(content.reshape(part.shape))


def shards_of(parameter: torch.nn.Parameter) -> tuple[TensorShard, ...]:
    """The shards of a model's parameter, which are set where the parameter is created."""
    shards: tuple[TensorShard, ...] = parameter.shards  # type: ignore[attr-defined]
    return shards
