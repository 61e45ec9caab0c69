"""The text of `spdf inspect` about a mask's products on a GPU."""

from __future__ import annotations

import torch
from spdf_kernels import SparsityPattern

from spdf_dist.checkpoint.model_state import gpu_path


def test_whole_blocks_are_told_from_other_masks() -> None:
    blocks = torch.eye(2, dtype=torch.bool).repeat_interleave(128, 0).repeat_interleave(128, 1)
    small = torch.eye(3, dtype=torch.bool).repeat_interleave(64, 0).repeat_interleave(64, 1)
    permuted = blocks[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    paths = [gpu_path(SparsityPattern.from_mask(mask)) for mask in (blocks, small, permuted)]
    assert paths == ["blocks of 128", "blocks of 64", "expanded"]
