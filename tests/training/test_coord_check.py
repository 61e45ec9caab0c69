"""A short coordinate check: SuPar, unlike the standard parameterization, keeps activations over width and density."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from spdf_dist.config.schema import ModelConfig, PretrainConfig, TrainingConfig
from spdf_dist.training.coord_check import coordinate_check, draw, spread, summary

pytestmark = pytest.mark.slow  # each run of the trainer takes seconds

CONFIG = PretrainConfig(
    device="cpu",
    model=ModelConfig(num_layers=2, hidden_size=128, num_attention_heads=4, seq_length=128, vocab_size=512),
    training=TrainingConfig(lr=1e-2, micro_batch_size=4, parameterization="supar", base_hidden_size=128),
)


@pytest.fixture(scope="module")
def points():
    """Three densities at width 256, and dense at width 128. Values are means over three seeds."""
    by_density = coordinate_check(CONFIG, [256], [1.0, 0.25, 0.125], steps=3, seeds=(1, 2, 3))
    return pd.concat([by_density, coordinate_check(CONFIG, [128], [1.0], steps=3, seeds=(1, 2, 3))])


def test_supar_keeps_activations_over_width_and_density(points):
    before, after = spread(points, "supar", 0), spread(points, "supar", 3)
    assert max(before.values()) < 1.05
    assert max(after.values()) < 3


def test_the_standard_parameterization_does_not(points):
    assert min(spread(points, "standard", 0).values()) > 5
    assert min(spread(points, "standard", 3).values()) > 100


def test_the_figure_and_the_data(points, tmp_path: Path):
    draw(points, tmp_path / "coord_check.png")
    assert (tmp_path / "coord_check.png").stat().st_size > 10_000
    found = summary(points)
    assert len(found["points"]) == 2 * 3 * 4 * 4 and set(found["spread"]) == {"standard", "supar"}
    assert json.loads(json.dumps(found)) == found
