"""TensorBoard's files are worth no run."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils import tensorboard

from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.callbacks import StepMetrics, TensorBoard
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.setup import executed_ratio


@pytest.mark.parametrize("failing", ["__init__", "add_scalar", "flush", "close"])
def test_a_disk_that_does_not_take_tensorboard_s_files_is_one_warning(
    failing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorboard.SummaryWriter, failing, full)
    board = TensorBoard(RunFolder(tmp_path), 0, {"qkv": 0.75})
    for step in (1, 2):
        board.on_validation(step, 3.0)
    board.on_end()
    assert (
        capsys.readouterr().err == f"WARNING: {tmp_path}/tensorboard is not written any more: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("execution", "pattern", "recomputed", "over_mfu"),
    [
        ("masked", "unstructured", False, 2.499),
        ("compressed", "unstructured", False, 2.499),  # expanded to dense products
        ("compressed", "balanced:128", False, 1.0),
        ("masked", "unstructured", True, 3.27),
    ],
)
def test_hfu_counts_what_a_gpu_executes(
    execution: str, pattern: str, recomputed: bool, over_mfu: float, tmp_path: Path
) -> None:
    recompute = f"training.activation_checkpointing={str(recomputed).lower()}"
    config = load_config(PretrainConfig, "gpt3_xl_s75", [recompute, f"sparsity.pattern={pattern}"])
    ratio = executed_ratio(config, config.model, config.sparsity, {"qkv": execution})
    assert ratio == pytest.approx(over_mfu, rel=0.01)
    board = TensorBoard(RunFolder(tmp_path), 0, {}, ratio)
    board.on_step(StepMetrics(1, 2, 3, 4.0, 1e-3, 1.0, 5.0, 6.0, 7, 8, 0.2, 0))
    board.on_end()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("speed/mfu")[0].value == pytest.approx(0.2)
    assert events.Scalars("speed/hfu")[0].value == pytest.approx(0.2 * ratio)
