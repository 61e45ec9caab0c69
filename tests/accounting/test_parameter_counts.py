"""Parameter counts of Table 1 and exact non-zeros."""

from __future__ import annotations

import pytest

from spdf_dist.accounting.parameters import nonzeros, parameter_counts, total_parameters
from spdf_dist.base.numbers import short_count
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import ModelConfig, PretrainConfig, SparsityConfig


@pytest.mark.parametrize(
    ("name", "printed", "exact"), [("gpt2_small", "125M", 125_226_240), ("gpt3_xl", "1.32B", 1_315_723_264)]
)
def test_parameters_of_table_1(name: str, printed: str, exact: int) -> None:
    count = total_parameters(load_config(PretrainConfig, name).model)
    assert (short_count(count), count) == (printed, exact)


def test_only_targets_lose_weights() -> None:
    model = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=2)
    counts = nonzeros(model, SparsityConfig(level=0.5, targets=["W_O"]))
    layer = {"W_Q": 64, "W_K": 64, "W_V": 64, "W_D": 64, "W_I": 256, "W_O": 128}
    assert counts == {f"layers.{i}.{name}": count for i in range(2) for name, count in layer.items()}


def test_counts_equal_a_plain_gpt() -> None:
    """Every tensor of a GPT with tied embeddings, spelled out."""
    model = ModelConfig(
        num_layers=3, hidden_size=16, num_attention_heads=2, ffn_hidden_size=40, seq_length=10, vocab_size=50
    )
    layer = 4 * (16 * 16 + 16) + (40 * 16 + 40) + (16 * 40 + 16) + 2 * 2 * 16
    assert total_parameters(model) == 50 * 16 + 10 * 16 + 3 * layer + 2 * 16
    assert sum(parameter_counts(model).values()) == total_parameters(model)
