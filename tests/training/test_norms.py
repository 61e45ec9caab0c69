"""Per-layer norms: equal at every topology, ZeRO stage and execution, and without effect on the run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from in_process import ONE_RANK, STEP, losses, train
from spdf_command import read_metrics, run_spdf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spdf_dist.config.errors import UserError

SHORT = (f"training.train_tokens={4 * STEP}", "training.global_batch_size=16", "training.micro_batch_size=4")
NORMS = "callbacks.norms.every=2"


def logged(run: Path, prefix: str) -> dict[int, dict[str, float]]:
    """The further metrics whose names begin with ``prefix``, by step."""
    found: dict[int, dict[str, float]] = {}
    for line in read_metrics(run):
        values = {name: value for name, value in line.get("metrics", {}).items() if name.startswith(prefix)}
        if values:
            found.setdefault(line["step"], {}).update(values)
    return found


@pytest.fixture(scope="module")
def reference(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without ZeRO, masked, with norms of steps 2 and 4."""
    run = tmp_path_factory.mktemp("reference") / "run"
    train(tiny_config, run, *SHORT, NORMS, "parallel.zero_stage=0")
    return run


def test_the_gradients_norms_add_up_to_the_global_norm_and_the_run_stays_the_same(
    reference: Path, tiny_config: Path, tmp_path: Path
) -> None:
    train(tiny_config, tmp_path / "without", *SHORT, "parallel.zero_stage=0")
    assert losses(reference) == losses(tmp_path / "without")
    found = logged(reference, "norm/gradient/")
    assert sorted(found) == [2, 4]
    for step, norms in found.items():
        assert {"norm/gradient/embedding.word", "norm/gradient/layers.1.W_O", "norm/gradient/ln_f.bias"} <= set(norms)
        assert math.hypot(*norms.values()) == pytest.approx(losses(reference)[step][1], rel=1e-5)
    events = EventAccumulator(str(reference / "tensorboard")).Reload()
    (first, _) = events.Scalars("norm/gradient/layers.0.W_Q")
    assert (first.step, first.value) == (2, pytest.approx(found[2]["norm/gradient/layers.0.W_Q"]))


def test_the_last_norm_s_output_has_a_root_mean_square_of_one_before_training(
    tiny_config: Path, tmp_path: Path
) -> None:
    train(tiny_config, tmp_path / "run", *SHORT, "callbacks.norms={every: 1, gradients: false}")
    norms = logged(tmp_path / "run", "norm/")[1]
    assert set(norms) == {
        f"norm/activation/{name}"
        for name in (
            *("embedding", "layers.0.attention", "layers.0.mlp", "layers.0"),
            *("layers.1.attention", "layers.1.mlp", "layers.1", "final_norm"),
        )
    }
    assert norms["norm/activation/final_norm"] == pytest.approx(1, rel=0.05)
    assert norms["norm/activation/layers.1"] > norms["norm/activation/layers.1.mlp"] > 0


@pytest.mark.parametrize(
    "how",
    [
        ("parallel.zero_stage=1",),
        ("parallel.zero_stage=2", "sparsity.execution=compressed"),
        ("parallel.zero_stage=0", "sparsity.execution=compressed", "training.activation_checkpointing=true"),
    ],
)
def test_norms_are_those_of_the_run_without_zero(
    how: tuple[str, ...], reference: Path, tiny_config: Path, tmp_path: Path
) -> None:
    train(tiny_config, tmp_path / "run", *SHORT, NORMS, *how)
    assert_equal_norms(tmp_path / "run", reference)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [("parallel.zero_stage=1", "parallel.sequence=true"), ("parallel.zero_stage=0", "callbacks.ranks.every=3")]
)
def test_norms_of_tensor_and_data_ranks_are_those_of_one_process(
    how: tuple[str, ...], reference: Path, tiny_config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = (*ONE_RANK[1:], "parallel.tensor=2", "parallel.data=2")
    done = run_spdf("pretrain", tiny_config, *ranks, *SHORT, NORMS, *how, f"run_dir={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_norms(run, reference)
    compared = logged(run, "ranks/")
    if "callbacks.ranks.every=3" in how:
        assert list(compared) == [3]
        assert compared[3]["ranks/slowest"] in range(4) and compared[3]["ranks/slowest_over_median"] >= 1
        low, middle, high = (compared[3][f"ranks/forward_ms/{what}"] for what in ("min", "median", "max"))
        assert 0 < low <= middle <= high


def assert_equal_norms(run: Path, reference: Path) -> None:
    """All norms of two runs are equal, apart from rounding."""
    expected = logged(reference, "norm/")
    found = logged(run, "norm/")
    assert sorted(found) == sorted(expected)
    for step, norms in expected.items():
        assert found[step] == pytest.approx(norms, rel=2e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["norms", "ranks"])
def test_an_interval_of_zero_is_an_error(name: str, tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"callbacks.{name}.every: must be 1 or more steps, got 0"):
        train(tiny_config, tmp_path / "run", f"callbacks.{name}.every=0")
