"""ZeRO stage 3: exact resume, checkpoints of other stages, validation of unequal ranks, non-finite values, errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from in_process import losses, tensors, train
from spdf_command import read_metrics, run_spdf

from spdf_dist.config.errors import NonFiniteError, UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.engine import Engine

STAGE_3 = "parallel.zero_stage=3"


def cut(run: Path, to: Path) -> Path:
    """A copy of a run as it was after step 5."""
    shutil.copytree(run, to)
    for step in (10, 12):
        shutil.rmtree(to / "checkpoints" / f"step_{step}")
    return to


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def whole(request: pytest.FixtureRequest, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run: Path = tmp_path_factory.mktemp("stage_3") / request.param
    train(tiny_config, run, STAGE_3, f"training.precision={request.param}")
    return run


def test_a_run_resumes_exactly(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    run = cut(whole, tmp_path / "run")
    train(tiny_config, run, STAGE_3, f"training.precision={whole.name}")
    assert losses(run) == losses(whole)
    again = tensors(run)
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors(whole).items())


def test_checkpoints_move_between_the_stages(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    how, tolerance = f"training.precision={whole.name}", 1e-4 if whole.name == "fp32" else 2e-2
    at_stage_1 = cut(whole, tmp_path / "to_1")
    train(tiny_config, at_stage_1, "parallel.zero_stage=1", "sparsity.execution=compressed", how)
    train(tiny_config, tmp_path / "one", "parallel.zero_stage=1", how)
    back = cut(tmp_path / "one", tmp_path / "to_3")
    train(tiny_config, back, STAGE_3, "sparsity.execution=compressed", how)
    for run in (at_stage_1, tmp_path / "one", back):
        for step, line in losses(whole).items():
            assert losses(run)[step] == pytest.approx(line, rel=tolerance), (run, step)


@pytest.mark.distributed
@pytest.mark.parametrize("whole", ["fp32"], indirect=True)
def test_other_ranks_go_on_and_validate_unequal_shares(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    """The validation set gives the first data rank one micro-batch more than the second."""
    run = cut(whole, tmp_path / "run")
    same = ("model.dropout=0", "training.schedule=constant", "training.micro_batch_size=8", "validation.batches=99")
    layout = (STAGE_3, "parallel.data=2", "sparsity.execution=compressed", "checkpoint.asynchronous=true")
    done = run_spdf("pretrain", tiny_config, f"run_dir={run}", *same, *layout, "--change")
    assert done.returncode == 0, done.stderr
    for step, line in losses(whole).items():
        assert losses(run)[step] == pytest.approx(line, rel=1e-4)
    one = cut(whole, tmp_path / "one")
    train(tiny_config, one, "parallel.zero_stage=1", "validation.batches=99", change=True)
    found, wanted = ([line["val_loss"] for line in read_metrics(r) if "val_loss" in line][-1] for r in (run, one))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_weight_or_gradient_that_is_not_finite_is_named(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Engine.step

    def spoiled(self: Engine, *arguments: object, **more: object) -> object:
        parameter = next(p for p in self.model.parameters() if p.shards[0].name == "layers.1.W_I")
        value = self.full_parameter(parameter)
        value.view(-1)[0] = float("nan")
        self.load_parameter(parameter, value)
        return step(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "step", spoiled)
    with pytest.raises(NonFiniteError, match=r"first not finite: the weight layers\.1\.W_I"):
        train(tiny_config, tmp_path / "run", STAGE_3, "sparsity.level=0")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.optimizer=muon", "muon needs whole matrices"),
        ("deepspeed={zero_optimization: {}}", "uses torch's FSDP2 instead of DeepSpeed"),
        ("sparsity.algorithm=rigl", "rigl needs whole weights"),
    ],
)
def test_what_stage_3_cannot_do_is_refused(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(PretrainConfig, "cpu_1m", [STAGE_3, "sparsity.level=0.75", override])


def test_the_gradients_before_the_update_have_the_norm_of_the_step(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, norms = Engine.step, []

    def watched(self: Engine, *arguments: object, **more: object) -> object:
        def look() -> None:
            gradients = [self.full_gradient(parameter) for parameter in self.model.parameters()]
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

        self.before_update = look
        return step(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "step", watched)
    train(tiny_config, tmp_path / "run", STAGE_3)
    assert norms == pytest.approx([norm for _, norm, _ in losses(tmp_path / "run").values()], rel=1e-5)
