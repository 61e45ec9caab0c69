"""The static structure of one sparse weight, and its handle in the custom operators."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch

_next_handle = itertools.count(1)
_patterns: weakref.WeakValueDictionary[int, SparsityPattern] = weakref.WeakValueDictionary()


class SparsityPattern:
    """The kept entries of a weight [out, in]. Read-only; created by `from_mask`.

    The mask is stored as one bit per entry. A back end prepares further structures once, at its first use. `handle` is
    the integer that identifies the pattern in the custom operators.
    """

    __slots__ = ("__weakref__", "bits", "chosen", "device", "handle", "nnz", "prepared", "shape")

    device: torch.device
    handle: int
    nnz: int
    shape: tuple[int, int]
    bits: torch.Tensor  # the mask, row-major, first entry in the highest bit: uint8 [ceil(out * in / 8)]
    prepared: dict[str, Any]  # structures of the back ends, each under its own keys
    chosen: dict[torch.dtype, Any]  # the back end of each dtype, if none is forced

    def __init__(self) -> None:
        raise TypeError("make a pattern with SparsityPattern.from_mask(mask)")

    @classmethod
    def from_mask(cls, mask: torch.Tensor) -> SparsityPattern:
        """Pattern of the true entries of `mask`, a bool tensor [out, in], on the mask's device.

        Raises TypeError if `mask` is not a bool tensor, ValueError if it is not two-dimensional.
        """
        if not isinstance(mask, torch.Tensor):
            raise TypeError(f"mask must be a torch tensor, not {type(mask).__name__}")
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must have dtype torch.bool, not {mask.dtype}")
        if mask.dim() != 2:
            raise ValueError(f"mask must have two dimensions [out, in], not shape {tuple(mask.shape)}")
        if mask.device.type == "meta":
            raise ValueError("mask must hold data: a meta tensor has none")
        self = object.__new__(cls)
        fields = {
            "device": mask.device,
            "handle": next(_next_handle),
            "nnz": int(torch.count_nonzero(mask)),
            "shape": (mask.shape[0], mask.shape[1]),
            "bits": _pack(mask),
            "prepared": {},
            "chosen": {},
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        _patterns[self.handle] = self
        return self

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a SparsityPattern is read-only: cannot set {name!r}")

    def __deepcopy__(self, memo: dict[int, object]) -> SparsityPattern:
        return self  # read-only, so copies of a layer share it

    def __reduce__(self) -> tuple[object, ...]:
        return (SparsityPattern.from_mask, (self.mask(),))

    def __repr__(self) -> str:
        return f"SparsityPattern(shape={list(self.shape)}, nnz={self.nnz}, density={self.density:.4f})"

    @property
    def density(self) -> float:
        """Fraction of kept entries, 0 to 1; 0 for a weight without entries."""
        numel = self.shape[0] * self.shape[1]
        return self.nnz / numel if numel else 0.0

    def mask(self) -> torch.Tensor:
        """The mask, a new bool tensor [out, in]."""
        numel = self.shape[0] * self.shape[1]
        return _unpack(self.bits, numel).view(self.shape)

    def to(self, device: torch.device | str) -> SparsityPattern:
        """The pattern on a device; itself if it is there already. Raises ValueError for meta."""
        device = torch.device(device)
        if device == self.device or (device.type == self.device.type and device.index is None):
            return self
        return SparsityPattern.from_mask(self.mask().to(device))

    def flat_index(self) -> torch.Tensor:
        """Positions of the kept entries in the flattened weight, ascending: int32 (int64 from 2^31 entries on) [nnz].

        Cached after the first call, 4 bytes per kept entry: the torch path needs it in each step.
        """
        index = self.prepared.get("flat_index")
        if index is None:
            index = self.mask().view(-1).nonzero().view(-1)
            if self.shape[0] * self.shape[1] < 2**31:
                index = index.to(torch.int32)
            self.prepared["flat_index"] = index
        return index

    def compress(self, weight: torch.Tensor) -> torch.Tensor:
        """Kept entries of `weight` [out, in] in row-major order, [nnz]; differentiable.

        Raises TypeError for anything but a tensor, ValueError for another shape or device.
        """
        self._check_tensor("weight", weight, self.shape)
        return weight[self.mask()]

    def to_dense(self, values: torch.Tensor) -> torch.Tensor:
        """Weight [out, in] with `values` [nnz] at the kept entries and zeros elsewhere; differentiable.

        Raises TypeError for anything but a tensor, ValueError for another shape or device.
        """
        self._check_tensor("values", values, (self.nnz,))
        return values.new_zeros(self.shape).masked_scatter(self.mask(), values)

    def _check_tensor(self, name: str, tensor: object, shape: tuple[int, ...]) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch tensor, not {type(tensor).__name__}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)} for {self!r}, not {list(tensor.shape)}")
        if tensor.device != self.device:
            raise ValueError(f"{name} is on {tensor.device}, but the pattern's mask was on {self.device}")


def pattern_of(handle: int) -> SparsityPattern:
    """The existing pattern with this handle. Raises ValueError if there is none."""
    pattern = _patterns.get(int(handle))
    if pattern is None:
        raise ValueError(f"no living SparsityPattern has handle {int(handle)}: keep the pattern as long as it is used")
    return pattern


def _bit_values(device: torch.device) -> torch.Tensor:
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


def _pack(mask: torch.Tensor) -> torch.Tensor:
    """Bits of a bool mask in row-major order, first entry in the highest bit: uint8 [ceil(numel / 8)]."""
    numel = mask.numel()
    flat = torch.zeros(numel + -numel % 8, dtype=torch.bool, device=mask.device)
    flat[:numel] = mask.detach().reshape(-1)
    # Eight bytes of 0 or 1 as one integer: the multiplication moves byte i to bit 63 - i without overlap of terms.
    return ((flat.view(torch.int64) * -0x7FBFDFEFF7FBFDFF) >> 56).to(torch.uint8)


def _unpack(bits: torch.Tensor, numel: int) -> torch.Tensor:
    return (bits.unsqueeze(1) & _bit_values(bits.device)).ne(0).view(-1)[:numel]
