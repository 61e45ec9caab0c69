"""Which part of which global tensor a local parameter holds.

The global tensors of a model are listed in its family's ``architecture.py``. A parameter of the model carries
``pieces``, the parts that are stacked in it along its first dimension: the fused QKV weight has three. The kept values
of a sparse piece are in row-major order of this rank's slice of the global mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A slice of one global tensor and its place in a local parameter."""

    name: str
    """Global name."""
    shape: tuple[int, ...]
    """Global shape, without vocabulary padding."""
    dim: int | None
    """Dimension that tensor parallelism divides; None: every tensor rank holds the whole."""
    start: int
    """First index along ``dim`` that this rank holds (0 when ``dim`` is None)."""
    stop: int
    """One past the last; padding rows are outside."""
    offset: int
    """Where the piece begins in the stored parameter: a row, or an element when values are stored."""
    length: int
    """Rows, or elements, that it takes there."""
    mask_source: Tensor | Callable[[], Tensor] | None = None
    """What ``mask`` returns, or a function that makes it. A compressed layer gives a function: it holds one bit per
    weight, and a byte more would be a quarter of its state at 75%."""

    @property
    def mask(self) -> Tensor | None:
        """This rank's slice of the global mask, bool [out, in]; None for dense tensors."""
        source = self.mask_source
        return source if source is None or isinstance(source, Tensor) else source()

    @property
    def sparse(self) -> bool:
        """Whether there is a mask, without making it."""
        return self.mask_source is not None

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the slice."""
        shape = list(self.shape)
        if self.dim is not None:
            shape[self.dim] = self.stop - self.start
        return tuple(shape)


def split_pieces(pieces: tuple[Piece, ...], stored: Tensor) -> Iterator[tuple[Piece, Tensor]]:
    """Each piece with its content: the dense slice, or the kept values where ``stored`` is a vector of values.

    ``stored`` is the local parameter or anything of its shape (a moment, a gradient).
    """
    for piece in pieces:
        part = stored.narrow(0, piece.offset, piece.length)
        yield piece, part if piece.sparse else part.reshape(piece.local_shape)


def join_pieces(pieces: tuple[Piece, ...], contents: dict[str, Tensor], stored: Tensor) -> None:
    """Put contents, by global name, into ``stored`` in place: dense slices, of sparse pieces the kept values.

    Pruned entries and padding become zero.
    """
    stored.zero_()
    for piece in pieces:
        part = stored.narrow(0, piece.offset, piece.length)
        content = contents[piece.name].to(stored)
        if piece.sparse and stored.dim() > 1:
            part[piece.mask] = content
        else:
            part.copy_(content.reshape(part.shape))


def pieces_of(parameter: torch.nn.Parameter) -> tuple[Piece, ...]:
    """The pieces of a model's parameter, set where the parameter is made."""
    pieces: tuple[Piece, ...] = parameter.pieces  # type: ignore[attr-defined]
    return pieces
