"""Masks as packed bits, eight entries per byte, in the form that checkpoints store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spdf_dist.checkpoint.manifest import StoredMask
from spdf_dist.sparsity.masks import BoolArray, mask_digest


class PackedMasks(Mapping[str, BoolArray]):
    """Masks by logical weight name, stored as packed bits with their digests.

    A run with constant masks packs them once and passes the same object to every save, because computing masks takes
    longer than writing them.
    """

    def __init__(self, bits: dict[str, NDArray[np.uint8]], records: dict[str, StoredMask]) -> None:
        self.bits = bits
        self.records = records

    @classmethod
    def pack(cls, masks: Mapping[str, BoolArray]) -> PackedMasks:
        """Pack bool [out, in] arrays; returns ``masks`` itself if it is packed already."""
        if isinstance(masks, PackedMasks):
            return masks
        bits, records = {}, {}
        for name in masks:
            mask = masks[name]
            bits[name] = pack(mask)
            records[name] = StoredMask((mask.shape[0], mask.shape[1]), int(mask.sum()), mask_digest(mask))
        return cls(bits, records)

    def __getitem__(self, name: str) -> BoolArray:
        return unpack(self.bits[name], self.records[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def __contains__(self, name: Any) -> bool:
        return name in self.bits  # Mapping's own test would unpack the mask


def pack(mask: BoolArray) -> NDArray[np.uint8]:
    """A mask as packed row-major bits, the highest bit first."""
    return np.packbits(np.ascontiguousarray(mask).reshape(-1), bitorder="big")


def unpack(bits: NDArray[np.uint8], shape: tuple[int, int]) -> BoolArray:
    """The mask, bool [out, in], of packed bits."""
    flat = np.unpackbits(bits, count=shape[0] * shape[1], bitorder="big")
    return flat.view(np.bool_).reshape(shape)
