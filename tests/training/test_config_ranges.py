"""Invalid values are refused when the config is read, with their key."""

from __future__ import annotations

from pathlib import Path

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig


@pytest.fixture
def empty(tmp_path: Path) -> str:
    path = tmp_path / "empty.yaml"
    path.write_text("{}")
    return str(path)


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("training.lr", ("0", "-1e-3", "inf"), ("1e-3",)),
        ("training.eps", ("0", "inf"), ("1e-8",)),
        ("training.weight_decay", ("-0.1", "inf"), ("0",)),
        ("training.clip_grad", ("-1", "inf"), ("0",)),
        ("training.beta1", ("1", "1.5", "-0.1"), ("0", "0.9")),
        ("training.beta2", ("1", "-0.1"), ("0", "0.999")),
        ("training.skip_loss_spike", ("0.5", "1", "-2"), ("0", "1.5")),
        ("kernels.code_budget_mb", ("-1",), ("0",)),
        ("parallel.timeout_minutes", ("0", "-1", "1e-320", "inf"), ("0.05", "30")),
        ("model.ffn_hidden_size", ("0", "-4"), ("null", "8")),
    ],
)
def test_ranges(key: str, wrong: tuple[str, ...], right: tuple[str, ...], empty: str) -> None:
    for value in wrong:
        with pytest.raises(UserError, match=f"^{key}: must") as error:
            load_config(PretrainConfig, empty, [f"{key}={value}"])
        assert "\n" not in str(error.value)
    for value in right:
        load_config(PretrainConfig, empty, [f"{key}={value}"])


def test_ranges_of_fine_tuning(empty: str) -> None:
    files = ["finetune.checkpoint=x", "finetune.train=y"]
    load_config(FinetuneConfig, empty, files)
    for override in (
        "training.lr=0",
        "training.beta2=1",
        "training.eps=-1",
        "kernels.code_budget_mb=-1",
        "finetune.patience=-1",
    ):
        with pytest.raises(UserError, match="must"):
            load_config(FinetuneConfig, empty, [*files, override])


@pytest.mark.parametrize(
    ("train_tokens", "warmup_tokens", "accepted"),
    # Steps of 512 tokens: 5300 tokens are 10 steps, 5400 are 11, 100 are one.
    [(5300, 5119, True), (5300, 5120, False), (5400, 5500, True), (5400, 5632, False), (100, 511, True), (0, 0, True)],
)
def test_warm_up_ends_before_the_last_whole_step(
    train_tokens: int, warmup_tokens: int, accepted: bool, empty: str
) -> None:
    sizes = ["training.global_batch_size=8", "model.seq_length=64"]
    overrides = [*sizes, f"training.train_tokens={train_tokens}", f"training.warmup_tokens={warmup_tokens}"]
    if accepted:
        load_config(PretrainConfig, empty, overrides)
        return
    with pytest.raises(UserError, match="must be less than the"):
        load_config(PretrainConfig, empty, overrides)


def test_sequence_parallelism_says_what_it_needs(empty: str) -> None:
    two = ["parallel.tensor=2", "parallel.sequence=true"]
    load_config(PretrainConfig, empty, [*two, "model.dropout=0.1"])
    load_config(FinetuneConfig, empty, two)
    for overrides, message in (
        (["parallel.sequence=true"], "parallel.sequence: needs parallel.tensor of 2 or more"),
        ([*two, "model.seq_length=63"], "parallel.sequence: model.seq_length 63 is not divisible by 2"),
    ):
        with pytest.raises(UserError) as error:
            load_config(PretrainConfig, empty, overrides)
        assert str(error.value).startswith(message)


def test_a_level_without_targets_is_refused(empty: str) -> None:
    for targets in ("null", "[]"):
        with pytest.raises(UserError, match=r"^sparsity\.targets: is empty"):
            load_config(PretrainConfig, empty, ["sparsity.level=0.5", f"sparsity.targets={targets}"])
