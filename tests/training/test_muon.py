"""Muon against plain references, its state in checkpoints, and the errors of other optimizers' states."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import STEP, losses, train
from spdf_command import run_spdf
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz

from spdf_dist.accounting.layout import Layout
from spdf_dist.accounting.memory import memory
from spdf_dist.base.collective import SingleProcess
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig, TrainingConfig
from spdf_dist.parallel.layout import TensorShard
from spdf_dist.training.muon import COEFFICIENTS, Muon, matrices_of, orthogonalise

MUON = ("training.optimizer=muon", "training.lr=5e-3")


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (16, 16), (40, 24), (24, 72)])
def test_newton_schulz_maps_the_singular_values_by_its_polynomial(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64) * 3
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert torch.allclose(orthogonalise(matrix, torch.float64), u * s @ v, atol=1e-9)
    assert torch.allclose(orthogonalise(matrix.float(), torch.float32), (u * s @ v).float(), atol=1e-4)


def test_in_bf16_it_is_torchs_iteration_bit_for_bit() -> None:
    matrix = torch.randn(48, 32)
    expected = _zeropower_via_newtonschulz(matrix, COEFFICIENTS, 5, 1e-7)
    assert torch.equal(orthogonalise(matrix, torch.bfloat16), expected.float())


def test_a_zero_matrix_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(3, 5), torch.float32), torch.zeros(3, 5))


def single(parameter: nn.Parameter, shards: tuple[TensorShard, ...], dtype: torch.dtype, lr: float = 0.02) -> Muon:
    """An undivided Muon over one parameter, with its state."""
    parameter.shards = shards  # type: ignore[attr-defined]
    groups = SingleProcess()
    groups.tensor_size = groups.data_size = 1  # type: ignore[attr-defined]
    groups.data_rank = 0  # type: ignore[attr-defined]
    group = {"params": [parameter], "weight_decay": 0.1, "lr": lr, "shards": matrices_of([parameter])}
    muon = Muon([group], momentum=0.95, dtype=dtype, groups=groups)  # type: ignore[arg-type]
    muon.divide(partitioned=False)
    muon.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter)}
    return muon


def test_a_dense_matrix_is_trained_as_by_torch_muon() -> None:
    ours, theirs = (nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    muon = single(ours, (TensorShard("W", (24, 40), None, 0, 24, 0, 24),), torch.bfloat16)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(24, 40)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        reference.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_stacked_sparse_matrices_are_orthogonalised_one_by_one_and_masked() -> None:
    """Two matrices stacked in one parameter, of which the first is sparse, in both executions."""
    mask = torch.rand(6, 10) < 0.4
    whole = torch.cat([mask, torch.ones(4, 10, dtype=torch.bool)])
    kept = int(mask.sum())
    start = torch.randn(10, 10) * whole
    masked, compressed = nn.Parameter(start.clone()), nn.Parameter(start[whole].clone())
    first, second = TensorShard("A", (6, 10), None, 0, 6, 0, 6, mask), TensorShard("B", (4, 10), None, 0, 4, 6, 4)
    optimizers = [
        single(masked, (first, second), torch.float32),
        single(compressed, (replace(first, length=kept), replace(second, offset=kept, length=40)), torch.float32),
    ]
    expected, momentum = start.clone(), torch.zeros(10, 10)
    for _ in range(3):
        gradient = torch.randn(10, 10) * whole
        masked.grad, compressed.grad = gradient.clone(), gradient[whole].clone()
        for optimizer in optimizers:
            optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * momentum
        parts = [orthogonalise(part, torch.float32) * 0.2 * 10**0.5 for part in (update[:6], update[6:])]
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * torch.cat(parts) * whole
    assert torch.allclose(masked, expected, atol=1e-5)
    assert torch.equal(masked[whole], compressed)
    assert int(masked[~whole].count_nonzero()) == 0


@pytest.fixture(scope="module")
def whole(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("muon") / "run"
    train(tiny_config, run, *MUON)
    return run


def cut(run: Path, to: Path) -> Path:
    """A copy of a run as it was after step 5."""
    shutil.copytree(run, to)
    for step in (10, 12):
        shutil.rmtree(to / "checkpoints" / f"step_{step}")
    return to


def test_a_run_with_muon_learns_and_resumes_exactly(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    assert losses(whole)[12][0] < losses(whole)[1][0]
    run = cut(whole, tmp_path / "run")
    train(tiny_config, run, *MUON)
    assert losses(run) == losses(whole)
    checkpoint = Checkpoint(run)
    assert checkpoint.manifest.optimizer == {"updates": 12, "name": "muon"}
    tensors = checkpoint.manifest.tensors
    assert "exp_avg_sq" not in tensors["layers.0.W_Q"].slices and "exp_avg_sq" in tensors["embedding.word"].slices
    assert np.count_nonzero(checkpoint.read_array("layers.0.W_Q", "exp_avg"))
    assert all(tensor.pruned_nonzero[kind] == 0 for tensor in tensors.values() for kind in tensor.slices)


def test_a_checkpoint_goes_on_at_another_stage_and_execution(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    run = cut(whole, tmp_path / "run")
    train(tiny_config, run, *MUON, "parallel.zero_stage=0", "sparsity.execution=compressed")
    for step, line in losses(whole).items():
        assert losses(run)[step] == pytest.approx(line, rel=1e-4)


@pytest.mark.distributed
def test_a_checkpoint_goes_on_with_other_ranks(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    run = cut(whole, tmp_path / "run")
    layout = ("parallel.tensor=2", "parallel.data=2", "sparsity.execution=compressed")
    same = ("model.dropout=0", "training.schedule=constant")
    done = run_spdf("pretrain", tiny_config, f"run_dir={run}", *MUON, *same, *layout)
    assert done.returncode == 0, done.stderr
    for step, line in losses(whole).items():
        assert losses(run)[step] == pytest.approx(line, rel=1e-4)


def test_another_optimizer_is_another_run(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    for change in (False, True):
        with pytest.raises(UserError, match=r"holds another run .*training\.optimizer: 'muon' -> 'adamw'"):
            train(tiny_config, whole, "training.lr=5e-3", change=change)
    start = f"training.init_from={whole}/checkpoints/step_5"
    with pytest.raises(UserError, match=r"training\.reset: .* holds the state of muon, not of adamw; add optimizer"):
        train(tiny_config, tmp_path / "run", start, "training.reset=[data,schedule]")
    train(tiny_config, tmp_path / "run", start, f"training.train_tokens={2 * STEP}", "training.warmup_tokens=0")
    assert "name" not in (Checkpoint(tmp_path / "run").manifest.optimizer or {})


@pytest.mark.parametrize("method", ["rigl", "gmp"])
def test_dynamic_masks_move_the_momentum(method: str, tiny_config: Path, tmp_path: Path) -> None:
    how = (f"sparsity.algorithm={method}", "sparsity.update={every: 3, stop: 10}", "sparsity.execution=compressed")
    train(tiny_config, tmp_path / "run", *MUON, *how)
    assert losses(tmp_path / "run")[12][0] < losses(tmp_path / "run")[1][0]
    summary = json.loads(run_spdf("inspect", tmp_path / "run", "--json").stdout)
    assert summary["pruned_nonzero"] == 0 and summary["linear_sparsity"] == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.optimizer=sgd"], "training.optimizer: "),
        (["training.muon_momentum=0.9"], "has no effect without training.optimizer=muon"),
        (["training.optimizer=muon", "training.muon_momentum=1"], r"muon_momentum: must be in \[0, 1\)"),
        (
            ["training.optimizer=muon", "training.parameterization=supar", "training.base_hidden_size=64"],
            "supar's rates are AdamW's",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(PretrainConfig, "cpu_1m", overrides)


@pytest.mark.parametrize("stage", [0, 1])
def test_matrices_have_one_moment(stage: int) -> None:
    config = load_config(PretrainConfig, "gpt3_xl", [])
    adamw = Layout(1, 8, stage, 1, "dense", "fp32", False)
    sizes = [memory(config.model, None, layout)["moments"] for layout in (adamw, replace(adamw, optimizer="muon"))]
    matrices = 24 * 12 * 2048**2
    assert sizes[0] - sizes[1] == 4 * matrices // (8 if stage else 1)
    assert TrainingConfig().optimizer == "adamw"
