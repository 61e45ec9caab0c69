"""Gradual magnitude pruning: levels of the steps, their masks, and FLOPs of the phases."""

from __future__ import annotations

import numpy as np
import pytest

from spdf_dist.accounting.flops import training_flops
from spdf_dist.accounting.phases import phases, run_flops
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import config_from_tree
from spdf_dist.config.schema import MaskUpdateConfig, ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.sparsity.levels import change_steps, level_of_step, next_masks
from spdf_dist.sparsity.masks import logical_weights

GMP = {"algorithm": "gmp", "level": 0.75, "update": {"every": 20, "stop": 90}}
MODEL = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=4)


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        ("linear", [0, 0.1875, 0.375, 0.5625, 0.75]),
        ("exponential", [0, 1 - 0.25**0.25, 0.5, 1 - 0.25**0.75, 0.75]),
        ("cubic", [0, 0.75 * (1 - 0.75**3), 0.75 * 0.875, 0.75 * (1 - 0.25**3), 0.75]),
    ],
)
def test_the_level_changes_after_the_update_steps(schedule, levels):
    sparsity = SparsityConfig(level=0.75, algorithm="gmp", schedule=schedule, update=MaskUpdateConfig(20, 0, 90))
    assert change_steps(sparsity, 100) == [20, 40, 60, 80]
    found = [level_of_step(sparsity, step, 100) for step in (20, 21, 41, 61, 81)]
    assert found == pytest.approx(levels, abs=1e-6) and level_of_step(sparsity, 100, 100) == 0.75


def test_a_list_of_levels_may_fall():
    update = MaskUpdateConfig(10, 0, 100)
    sparsity = SparsityConfig(level=0.0, algorithm="gmp", schedule="list", initial_level=0.9,
                              schedule_levels=[0.5, 0.0], update=update)  # fmt: skip
    assert [level_of_step(sparsity, step, 100) for step in (1, 10, 11, 20, 21, 99)] == [0.9, 0.9, 0.5, 0.5, 0.0, 0.0]
    assert sparsity.is_sparse


@pytest.mark.parametrize("pattern", ["unstructured", "block:4"])
def test_pruning_keeps_the_largest_of_what_was_kept_and_growing_adds_at_random(pattern):
    weights = {
        name: np.random.default_rng(1).normal(size=s).astype(np.float32) for name, s in logical_weights(MODEL).items()
    }
    half = next_masks(MODEL, SparsityConfig(level=0.5, pattern=pattern), weights.__getitem__, {})
    pruned = {name: np.where(half[name], w, 0).astype(np.float32) for name, w in weights.items()}
    less = next_masks(MODEL, SparsityConfig(level=0.75, pattern=pattern), pruned.__getitem__, half)
    more = next_masks(MODEL, SparsityConfig(level=0.25, pattern=pattern), pruned.__getitem__, half)
    for name, mask in half.items():
        assert not (less[name] & ~mask).any() and not (mask & ~more[name]).any()
        assert less[name].mean() == 0.25 and more[name].mean() == 0.75
        if pattern == "unstructured":
            assert np.abs(weights[name][less[name]]).min() >= np.abs(weights[name][mask & ~less[name]]).max()
        new = more[name] & ~mask
        assert 0.3 < new[: new.shape[0] // 2].sum() / new.sum() < 0.7  # not the first places


def test_flops_count_every_phase_and_update():
    tree = {"sparsity": GMP | {"schedule": "linear"}, "training": {"train_tokens": 2048 * 100}}
    config = config_from_tree(PretrainConfig, tree)
    counted = list(phases(config))
    assert [steps for steps, _ in counted] == [20, 20, 20, 20, 20]
    assert [s.level for _, s in counted] == pytest.approx([0, 0.1875, 0.375, 0.5625, 0.75])
    assert run_flops(config) == sum(n * 8 * training_flops(config.model, s) for n, s in counted)
    rigl = config_from_tree(
        PretrainConfig, tree | {"sparsity": {"level": 0.75, "algorithm": "rigl", "update": {"every": 10}}}
    )
    static = config_from_tree(PretrainConfig, tree | {"sparsity": {"level": 0.75}})
    dense = config_from_tree(PretrainConfig, tree | {"sparsity": {"level": 0}})
    extra = run_flops(rigl) - run_flops(static)
    assert extra == pytest.approx(7 / 300 * (run_flops(dense) - run_flops(static)))  # a third of a step, 7 times


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (
            GMP | {"schedule": "constant"},
            "gmp needs a level that changes; for a constant one, set sparsity.algorithm=static",
        ),
        (GMP | {"initial_level": 0.75}, "gmp needs a level that changes"),
        (GMP | {"update": {"every": 500}}, "the level never changes"),
        (GMP | {"update": {"every": 1}}, "the level would change 74 times"),
        (GMP | {"schedule": "list", "schedule_levels": [0.5, 0.6]}, "end at sparsity.level 0.75"),
        (GMP | {"pattern": "2:4", "level": 0.5}, "gmp prunes unstructured or in block:B"),
        ({"level": 0.5, "algorithm": "set", "schedule": "linear"}, "set keeps the level constant"),
        (
            {"level": 0.5, "algorithm": "set", "initial_level": 0.25},
            "a level that changes needs sparsity.algorithm=gmp",
        ),
        ({"level": 0.5, "initial_level": 0.25}, "static keeps the level constant"),
    ],
)
def test_mistakes_are_one_line(sparsity, message):
    with pytest.raises(UserError, match=message):
        config_from_tree(PretrainConfig, {"sparsity": sparsity, "training": {"train_tokens": 2048 * 100}})
