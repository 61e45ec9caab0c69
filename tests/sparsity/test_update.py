"""Dynamic masks: counts, groups, tensor ranks, NaN, and the steps of updates."""

from __future__ import annotations

import numpy as np
import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import config_from_tree
from spdf_dist.config.schema import MaskUpdateConfig, ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.sparsity.masks import make_mask
from spdf_dist.sparsity.patterns.base import by_magnitude, magnitude_bits
from spdf_dist.sparsity.update import (
    at_random,
    drop_fraction_at,
    group_count,
    swap,
    update_steps,
)

SHAPE = (32, 48)


def some_mask() -> np.ndarray:
    return make_mask("layers.0.W_Q", SHAPE, SparsityConfig(level=0.75))


def integers(seed: int) -> np.ndarray:
    """Whole numbers with many ties. Their sums do not depend on the order."""
    return np.random.default_rng(seed).integers(-9, 10, SHAPE).astype(np.float32)


@pytest.mark.parametrize("dim", [0, 1])
def test_counts_of_every_group_stay_over_a_hundred_updates(dim):
    mask = some_mask()
    counts = [part.sum() for part in np.split(mask, 8, dim)]
    for number in range(100):
        grow = by_magnitude(integers(number)) if number % 2 else at_random(1, "layers.0.W_Q", number, SHAPE)
        new = swap(mask, magnitude_bits(integers(1000 + number)), grow, 8, dim, 0.3)
        assert not np.array_equal(new, mask)
        mask = new
    assert [part.sum() for part in np.split(mask, 8, dim)] == counts


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_ranks_decide_as_one_process_does(dim, ranks):
    mask, weight, gradient = some_mask(), integers(1), integers(2)
    whole = swap(mask, magnitude_bits(weight), by_magnitude(gradient), 8, dim, 0.3)
    parts = [
        swap(m, magnitude_bits(w), by_magnitude(g), 8 // ranks, dim, 0.3)
        for m, w, g in zip(*(np.split(x, ranks, dim) for x in (mask, weight, gradient)), strict=True)
    ]
    assert np.array_equal(np.concatenate(parts, dim), whole)


def test_the_smallest_go_and_the_largest_gradients_come():
    mask = np.array([[True, True, True, True, False, False, False, False]])
    weight = np.array([[4, -1, 3, 2, 0, 0, 0, 0]], np.float32)
    gradient = np.array([[0, 0, 0, 0, 1, -7, 5, 0]], np.float32)
    new = swap(mask, magnitude_bits(weight), by_magnitude(gradient), 1, 0, 0.5)
    assert new.tolist() == [[True, False, True, False, False, True, True, False]]


def test_a_gradient_that_is_not_finite_never_grows_its_entry():
    mask = np.array([[True, True, False, False, False]])
    gradient = np.array([[0, 0, np.nan, np.inf, 1e-9]], np.float32)
    new = swap(mask, magnitude_bits(np.array([[2, 1, 0, 0, 0]], np.float32)), by_magnitude(gradient), 1, 0, 0.5)
    assert new.tolist() == [[True, False, False, False, True]]


def test_when_updates_come_and_how_much_they_swap():
    sparsity = SparsityConfig(level=0.5, algorithm="rigl", update=MaskUpdateConfig(10, 15, 60), drop_fraction=0.4)
    assert list(update_steps(sparsity, 100)) == [20, 30, 40, 50]
    assert list(update_steps(SparsityConfig(level=0.5, algorithm="set"), 1000))[-1] == 700
    assert list(update_steps(SparsityConfig(level=0.5), 1000)) == []
    fractions = [drop_fraction_at(sparsity, step, 100) for step in (0, 30, 60, 80)]
    assert fractions[0] == 0.4 and fractions[1] == pytest.approx(0.2) and fractions[2] == fractions[3] == 0


def test_the_default_groups_divide_heads_and_weights():
    sparsity = SparsityConfig(level=0.5, algorithm="rigl")
    assert group_count(ModelConfig(hidden_size=96, num_attention_heads=12), sparsity) == 12
    assert group_count(ModelConfig(hidden_size=96, num_attention_heads=6, ffn_hidden_size=100), sparsity) == 2


RIGL = {"level": 0.75, "algorithm": "rigl", "update": {"every": 10}}


@pytest.mark.parametrize(
    ("sparsity", "extra", "message"),
    [
        (RIGL | {"update": {"every": 5000}}, {}, "the masks never change"),
        (RIGL | {"update": {"every": 10, "start": 50, "stop": 50}}, {}, "the masks never change"),
        (RIGL | {"drop_fraction": 1}, {}, "drop_fraction: must be between 0 and 1, got 1"),
        (RIGL | {"groups": 3}, {}, "groups: 3 does not divide the 256 outputs of layers.0.W_Q"),
        (RIGL | {"groups": 1}, {"parallel": {"tensor": 2}}, "groups: 1 is not divisible by parallel.tensor 2"),
        (RIGL | {"level": 0.5, "pattern": "2:4"}, {}, "changes unstructured and block:B masks, not 2:4"),
        (RIGL | {"level": 0}, {}, "rigl needs sparsity.level above 0"),
        ({"level": 0.5, "groups": 4}, {}, "groups: has no effect without sparsity.algorithm"),
        ({"level": 0.5, "algorithm": "riggl"}, {}, "did you mean 'rigl'"),
    ],
)
def test_mistakes_are_one_line(sparsity, extra, message):
    tree = {"sparsity": sparsity, "training": {"train_tokens": 2048 * 100}}
    with pytest.raises(UserError, match=message):
        config_from_tree(PretrainConfig, tree | extra)
