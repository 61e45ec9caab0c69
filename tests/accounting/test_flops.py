"""Compares the FLOP formula with the paper's digits and with torch's counter."""

from __future__ import annotations

import pytest

from spdf_dist.accounting.flops import executed_flops, forward_flops, linears_share, training_flops
from spdf_dist.accounting.paper import (
    ROUNDED,
    TABLE_2_COLUMNS,
    TABLE_3_COLUMNS,
    Row,
    as_printed,
    figure_2,
    table_2,
    table_3,
)
from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.config.budget import tokens_per_step, total_steps, warmup_steps
from spdf_dist.config.load import build, load_config
from spdf_dist.config.schema import ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of

PARTS = ("Q", "K", "V", "D", "I", "O", "attention", "softmax", "logits")
TINY = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=24, vocab_size=101)


@pytest.mark.parametrize(
    ("name", "level", "digits"),
    [
        ("gpt2_small", 0.0, "1.9873e+12"),
        ("gpt2_small", 0.5, "1.4654e+12"),
        ("gpt2_small", 0.75, "1.2045e+12"),
        ("gpt3_xl", 0.0, "1.8597e+13"),
        ("gpt3_xl", 0.5, "1.1175e+13"),
        ("gpt3_xl", 0.75, "7.4640e+12"),
    ],
)
def test_flops_of_a_sequence_have_the_papers_digits(name: str, level: float, digits: str) -> None:
    model = load_config(PretrainConfig, name).model
    assert f"{training_flops(model, SparsityConfig(level=level)):.4e}" == digits


@pytest.mark.parametrize(("rows", "columns"), [(table_2(), TABLE_2_COLUMNS), (table_3(), TABLE_3_COLUMNS)])
def test_every_figure_is_reproduced_or_explained_by_a_number_with_the_printed_digits(
    rows: list[Row], columns: tuple[str, ...]
) -> None:
    explained = {(labels, column) for labels, row in ROUNDED.items() for column in row}
    for row in rows:
        assert tuple(figure.column for figure in row.figures) == columns
        for figure in row.figures:
            if figure.reproduced:
                assert figure.note == ""
                continue
            first, second = row.labels
            key = (first, float(second.rstrip("%")) / 100) if second.endswith("%") else row.labels
            value, _ = ROUNDED[key][figure.column]
            assert as_printed(value, figure.printed) == figure.printed
            explained.remove((key, figure.column))
            assert figure.note
    assert not {key for key in explained if key[0] in {row.labels for row in rows}}


def test_only_the_known_figures_differ() -> None:
    differing = [(row.labels, f.column) for row in table_2() + table_3() for f in row.figures if not f.reproduced]
    assert differing == [
        (("GPT-2 Small", "75%"), "total FLOPs"),
        (("GPT-2 Small", "75%"), "exaFLOPs"),
        (("GPT-2 Small", "75%"), "of dense"),
        (("GPT-3 XL", "0%"), "exaFLOPs"),
        (("E2E", "GPT-2 Small"), "total FLOPs"),
        (("E2E", "GPT-3 XL"), "total FLOPs"),
        (("E2E", "GPT-3 XL"), "exaFLOPs"),
    ]


def test_figure_2_saves_sixty_percent() -> None:
    assert [f"{row['reduction']:.0%}" for row in figure_2()] == ["0%", "40%", "60%"]


def test_parts_sum_to_a_third_of_training() -> None:
    parts = forward_flops(TINY, SparsityConfig(level=0.75))
    assert tuple(parts) == PARTS
    assert 3 * sum(parts.values()) == training_flops(TINY, SparsityConfig(level=0.75))


def test_sparsity_leaves_attention_and_logits_alone() -> None:
    dense, sparse = forward_flops(TINY), forward_flops(TINY, SparsityConfig(level=0.75))
    assert {part for part in PARTS if dense[part] != sparse[part]} == {"Q", "K", "V", "D", "I", "O"}
    assert sparse["I"] * 4 == dense["I"]
    only = forward_flops(TINY, SparsityConfig(level=0.75, targets=["W_I"]))
    assert {part for part in PARTS if dense[part] != only[part]} == {"I"}


def test_executed_flops_count_zeros_and_recomputation() -> None:
    sparse = SparsityConfig(level=0.75)
    forward = forward_flops(TINY)
    assert executed_flops(TINY, sparse, "compressed") == training_flops(TINY, sparse)
    assert executed_flops(TINY, sparse, "masked") == training_flops(TINY)
    recomputed = executed_flops(TINY, sparse, "masked", activation_checkpointing=True)
    assert recomputed - training_flops(TINY) == sum(forward.values()) - forward["logits"]


def test_linears_share_of_small_models() -> None:
    """Two small models: with a large vocabulary, the linear layers have a small share of the FLOPs."""
    large = ModelConfig(num_layers=4, hidden_size=128, num_attention_heads=4, seq_length=256, vocab_size=50257)
    small = ModelConfig(num_layers=6, hidden_size=256, num_attention_heads=4, seq_length=256, vocab_size=4096)
    assert linears_share(large) < 0.12
    assert linears_share(small) > 0.6


@pytest.mark.parametrize(("name", "steps", "warmup"), [("gpt2_small", 4768, 715), ("gpt3_xl", 24796, 358)])
def test_steps_of_the_papers_models(name: str, steps: int, warmup: int) -> None:
    config = load_config(PretrainConfig, name)
    assert (total_steps(config), warmup_steps(config)) == (steps, warmup)


def test_a_budget_below_one_step_is_one_step_and_zero_is_none() -> None:
    def steps(tokens: int) -> int:
        config: PretrainConfig = build(PretrainConfig, {"training": {"train_tokens": tokens}}, "")
        assert tokens_per_step(config) == 8 * 256
        return total_steps(config)

    assert [steps(0), steps(1), steps(2048), steps(3 * 1024), steps(3 * 1024 - 1)] == [0, 1, 1, 2, 1]


def test_equals_torchs_own_counter() -> None:
    """Forward pass only, with attention as plain matrix products and without softmax, which torch does not count."""
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    d, h, t = TINY.hidden_size, TINY.num_attention_heads, TINY.seq_length

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.up, self.down = nn.Linear(d, TINY.ffn), nn.Linear(TINY.ffn, d)

        def forward(self, x_BTd: torch.Tensor) -> torch.Tensor:
            batch = x_BTd.shape[0]
            qkv = self.qkv(self.ln_1(x_BTd)).view(batch, t, 3, h, d // h)
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
            weights = torch.softmax(q @ k.transpose(-1, -2), -1)
            x_BTd = x_BTd + self.out((weights @ v).transpose(1, 2).reshape(batch, t, d))
            return x_BTd + self.down(torch.nn.functional.gelu(self.up(self.ln_2(x_BTd)), approximate="tanh"))

    word = nn.Embedding(TINY.vocab_size, d)
    blocks = nn.Sequential(*(Block() for _ in range(TINY.num_layers)))
    batch = 3
    with FlopCounterMode(display=False) as counter:
        tokens = torch.zeros(batch, t, dtype=torch.long)
        blocks(word(tokens)) @ word.weight.T
    ours = forward_flops(TINY)
    assert counter.get_total_flops() == batch * (sum(ours.values()) - ours["softmax"])


def test_llama_counts_each_kept_weight_and_all_heads() -> None:
    model = ModelConfig(
        family="llama",
        num_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        ffn_hidden_size=88,
        seq_length=10,
        vocab_size=50,
        tie_embeddings=False,
    )
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 88 * 32
    assert total_parameters(model) == 2 * 50 * 32 + 3 * (layer + 2 * 32) + 32
    linears = 3 * layer * 2 * 10
    rest = 3 * (4 * 10 * 10 * 32 + 3 * 4 * 10 * 10) + 2 * 10 * 32 * 50  # attention, softmax, logits
    assert sum(forward_flops(model).values()) == linears + rest
    sparse = SparsityConfig(level=0.75, targets=list(architecture_of(model).targets))
    assert sum(forward_flops(model, sparse).values()) == linears // 4 + rest
    assert linears_share(model) == linears / (linears + rest)
