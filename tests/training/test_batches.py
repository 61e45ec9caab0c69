"""Pre-training batches: what the ranks must agree on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.parallel.groups import Groups
from spdf_dist.training.batches import PretrainBatches


@pytest.mark.parametrize(("sequences", "passes"), [(1, 1), (8, 1), (9, 2), (99, 2)])
def test_ranks_agree_on_validations_of_fewer_sequences_than_one_pass_of_all_ranks(
    tiny_config: Path, sequences: int, passes: int
) -> None:
    config = load_config(PretrainConfig, str(tiny_config))  # a validation reads at most 16 sequences, in fours
    data: Any = SimpleNamespace(num_sequences=sequences)
    for rank in (0, 1):
        groups = Groups(rank, 2, 0, 1, rank, 2, torch.device("cpu"))
        assert PretrainBatches(config, data, data, groups).validation_passes == passes
