"""The masks whose blocks a GPU skips, and their effect on estimates."""

from __future__ import annotations

import pytest

from spdf_dist.accounting.estimate import Cluster, estimate
from spdf_dist.accounting.gpu_kernels import BLOCKS, MEMORY_BOUND, rate_of, skipped_block, values_moved
from spdf_dist.accounting.hardware import GPUS
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig


def config(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, "gpt3_xl_s75", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "tensor", "block"),
    [
        (["sparsity.pattern=balanced:128"], 1, 128),
        (["sparsity.pattern=block:256"], 1, 128),
        (["sparsity.pattern=block:64"], 1, 64),
        (["sparsity.pattern=block:32"], 1, None),
        (["sparsity.pattern=unstructured"], 1, None),
        (["sparsity.pattern=2:4", "sparsity.level=0.5"], 1, None),
        (["sparsity.pattern=balanced:128", "sparsity.permute=true"], 1, None),
        (["sparsity.pattern=balanced:128", "training.precision=fp32", "parallel.zero_stage=0"], 1, None),
        (["sparsity.pattern=balanced:128"], 32, None),  # a shard of W_D has 64 inputs, less than a block
        (["sparsity.pattern=balanced:128", "sparsity.patterns={W_O: 'block:64'}"], 1, 64),
    ],
)
def test_whole_blocks_in_bf16_are_skipped(overrides: list[str], tensor: int, block: int | None) -> None:
    made = config(*overrides)
    assert skipped_block(made.model, made.sparsity, made.training.precision, tensor) == block


def test_the_edges_are_those_of_the_kernels() -> None:
    from spdf_kernels.triton.blocks import BLOCK_SIZES

    assert BLOCKS == BLOCK_SIZES


def test_rates_say_where_they_are_from_and_are_of_known_gpus() -> None:
    names = {gpu.name for gpu in GPUS.values()}
    for gpu in ("H100", "H200", "A100 80GB", "A100 40GB"):
        rate = rate_of(gpu, 128)
        assert gpu in names and rate is not None and 0 < rate.relative <= 1 and rate.source
    assert rate_of("B200", 128) is None and rate_of("H100", None) is None


def test_an_estimate_gains_from_blocks_and_not_from_other_masks() -> None:
    cluster = Cluster(1, 8, GPUS["h100"])

    def compute(*overrides: str) -> tuple[float, str]:
        summary = estimate(config(*overrides), cluster)
        return summary["step_seconds"]["compute"], summary["assumptions"]["sparse_products"]

    dense, _ = compute("sparsity.level=0")
    large, said = compute("sparsity.pattern=balanced:128")
    small, _ = compute("sparsity.pattern=balanced:64")
    assert 1.6 < dense / large < 2.0 and 1.4 < dense / small < dense / large
    assert "blocks of 128" in said and "estimate" in said  # `auto` selects compressed
    masked, said = compute()
    assert masked == pytest.approx(dense) and said.startswith("masked")
    expanded, said = compute("sparsity.execution=compressed")
    assert 1.0 < expanded / dense < 1.1 and "expanded" in said


def test_fused_kernels_move_fewer_values_and_an_estimate_has_the_time_without_them() -> None:
    made = config("sparsity.level=0", "parallel.data=8")
    d = made.model.hidden_size
    assert (values_moved(made.model, fused=True), values_moved(made.model, fused=False)) == (47 * d, 65 * d)
    summary = estimate(made, Cluster(1, 8, GPUS["h100"]))
    more = summary["assumptions"]["unfused_compute_seconds"] / summary["step_seconds"]["compute"]
    assert more == pytest.approx(1 + MEMORY_BOUND * (65 / 47 - 1))
    llama = load_config(PretrainConfig, "llama_1b", []).model
    assert 1.1 < values_moved(llama, fused=False) / values_moved(llama, fused=True) < 2
