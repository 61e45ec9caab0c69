"""SuPar's table by tensor, the optimizer groups, and folding of the multipliers into the weights."""

from __future__ import annotations

import math

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import config_from_tree
from spdf_dist.config.schema import ModelConfig, PretrainConfig
from spdf_dist.model.architecture import architecture_of
from spdf_dist.model.parameterization import Multipliers, Parameterization

MODEL = ModelConfig(num_layers=8, hidden_size=128, num_attention_heads=4, ffn_hidden_size=768)
SUPAR = Parameterization(
    "supar",
    base_hidden_size=64,
    base_ffn_hidden_size=256,
    init_std=0.04,
    embedding_multiplier=10.0,
    output_multiplier=3.0,
    attention_multiplier=2.0,
)


def test_the_table_of_supar():
    rules = SUPAR.rules(architecture_of(MODEL), {"layers.0.W_Q": 0.25, "layers.0.W_O": 0.5})
    q, dense, o = rules["layers.0.W_Q"], rules["layers.1.W_Q"], rules["layers.0.W_O"]
    assert q.std == pytest.approx(0.04 / math.sqrt(2 * 0.25)) and q.lr == pytest.approx(1 / (2 * 0.25)) and q.decay == 1
    assert dense.std == pytest.approx(0.04 / math.sqrt(2)) and dense.lr == pytest.approx(1 / 2)
    assert o.lr == pytest.approx(1 / (3 * 0.5))  # its fan-in is the MLP's width
    assert o.std == pytest.approx(0.04 / math.sqrt(16) / math.sqrt(3 * 0.5))
    for name in ("embedding.word", "embedding.position", "layers.0.ln_1.weight", "layers.0.b_Q"):
        assert rules[name].lr == 1
    assert rules["embedding.word"].std == pytest.approx(0.04)
    assert SUPAR.multipliers(MODEL) == Multipliers(embedding=10.0, output=1.5, attention=2 / 32, branch=1.0)


def test_the_standard_table_is_the_familys():
    table = architecture_of(MODEL)
    rules = Parameterization().rules(table, {"layers.0.W_Q": 0.25})
    assert all(rules[n].std == t.initial_std and rules[n].lr == rules[n].decay == 1 for n, t in table.tensors.items())
    assert Parameterization().multipliers(MODEL) == Multipliers() and Parameterization().folding(table) == {}


def test_the_decay_rule_keeps_rate_times_decay_and_the_depth_rule_scales_the_branches():
    ruled = Parameterization("supar", base_hidden_size=64, base_num_layers=2, weight_decay_scaling="product")
    rules = ruled.rules(architecture_of(MODEL), {"layers.0.W_D": 0.25})
    assert rules["layers.0.W_D"].lr * rules["layers.0.W_D"].decay == 1
    assert rules["layers.0.W_D"].std == pytest.approx(0.02 / math.sqrt(2 * 0.25))  # not divided by sqrt(2 L)
    assert ruled.multipliers(MODEL).branch == 0.25


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"parameterization": "supar"}, "base_hidden_size: supar needs it"),
        ({"parameterization": "mup"}, "is not known"),
        ({"output_multiplier": 2.0}, "output_multiplier: has no effect without training.parameterization=supar"),
        ({"base_hidden_size": 64}, "base_hidden_size: has no effect"),
        ({"init_std": 0}, "init_std: must be positive"),
        ({"embedding_lr_multiplier": -1}, "embedding_lr_multiplier: must be positive"),
    ],
)
def test_mistakes_are_one_line(training, message):
    with pytest.raises(UserError, match=message):
        config_from_tree(PretrainConfig, {"training": training})


def test_the_density_is_not_counted_twice():
    tree = {"training": {"parameterization": "supar", "base_hidden_size": 64}}
    with pytest.raises(UserError, match="would scale by the density twice"):
        config_from_tree(PretrainConfig, tree | {"sparsity": {"level": 0.5, "init_scale": "fan_in"}})
