"""Skipped updates: adaptive limits, gradients that change nothing, and an end that names its checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from in_process import STEP, losses, train

from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.config.errors import DivergedError, NonFiniteError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.model.initialize import initialize_parameters
from spdf_dist.parallel.layout import shards_of
from spdf_dist.training.batches import MicroBatch
from spdf_dist.training.divergence import WINDOW, SpikeLimit
from spdf_dist.training.engine import MOMENTS, Engine
from spdf_dist.training.setup import build_model, make_engine, start


def test_a_limit_adapts_to_a_level_that_stays() -> None:
    spikes = SpikeLimit(2.0)
    for _ in range(WINDOW - 1):
        spikes.add(1.0)
    assert spikes.limit() == math.inf  # too few values
    spikes.add(1.0)
    spikes.add(math.nan)
    assert spikes.limit() == 2.0
    over = 0
    while spikes.limit() < 5.0:
        spikes.add(5.0)
        over += 1
    assert over <= WINDOW // 2 + 1


def engine_of(config: Path, *overrides: str) -> tuple[Engine, list[MicroBatch]]:
    loaded = load_config(
        PretrainConfig, str(config), ["parallel.data=1", "model.dropout=0", "sparsity.level=0", *overrides]
    )
    groups = start(loaded, SINGLE_PROCESS)
    model = build_model(loaded, loaded.model, groups, {}, {})
    initialize_parameters(model, loaded.model, loaded.sparsity, 1)
    ids = torch.randint(300, (4, 33), generator=torch.Generator().manual_seed(1))
    return make_engine(model, loaded, groups), [MicroBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), 1)] * 4


OFFLOADED = "deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}, zero_force_ds_cpu_optimizer: false}"


@pytest.mark.parametrize(
    ("stage", "precision", "more"),
    [(0, "fp32", ()), (1, "fp32", ()), (2, "fp32", ()), (1, "bf16", ()), (2, "fp32", (OFFLOADED,))],
)
def test_a_gradient_norm_above_the_limit_changes_nothing(
    tiny_config: Path, stage: int, precision: str, more: tuple[str, ...]
) -> None:
    engine, batches = engine_of(tiny_config, f"parallel.zero_stage={stage}", f"training.precision={precision}", *more)
    engine.step(batches, 16 * 32, 1e-3)

    def state() -> list[torch.Tensor]:
        parameters = list(engine.model.parameters())
        return [engine.full_parameter(p).clone() for p in parameters] + [
            engine.full_moment(p, key).clone() for p in parameters for key in MOMENTS
        ]

    before = state()
    result = engine.step(batches, 16 * 32, 1e-3, norm_limit=1e-3)
    assert result.skipped and result.grad_norm > 1e-3 and engine.updates_done() == 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(), before, strict=True))
    again = engine.step(batches, 16 * 32, 1e-3)
    assert not again.skipped and engine.updates_done() == 2
    assert again.grad_norm == pytest.approx(result.grad_norm, rel=1e-6)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_first_tensor_that_is_not_finite_is_named(tiny_config: Path, stage: int) -> None:
    engine, batches = engine_of(tiny_config, f"parallel.zero_stage={stage}")
    parameter = next(p for p in engine.model.parameters() if shards_of(p)[0].name == "layers.1.W_I")
    with torch.no_grad():
        parameter[3, 5] = math.nan
    with pytest.raises(NonFiniteError, match=r"the loss is nan; .*; first not finite: the weight layers.1.W_I"):
        engine.step(batches, 16 * 32, 1e-3)
    with torch.no_grad():
        parameter[3, 5] = 3e38
    with pytest.raises(NonFiniteError, match=r"first not finite: the (output|gradient) of (decoder.)?layers.1.*"):
        engine.step(batches, 16 * 32, 1e-3)


def test_a_run_that_skips_on_and_on_stops_and_names_its_last_checkpoint(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpikeLimit, "limit", lambda self: 1.0 if len(self.values) > 6 else math.inf)
    run = tmp_path / "run"
    with pytest.raises(
        DivergedError, match=rf"it skipped 3 updates in a row .* up to step 10.*{run}/checkpoints/step_8;"
    ) as error:
        train(tiny_config, run, "training.max_skipped_in_a_row=3", "checkpoint.interval=2")
    assert error.value.exit_code == 3 and "--rewind" in str(error.value)
    assert sorted(losses(run)) == list(range(1, 11)) and STEP
