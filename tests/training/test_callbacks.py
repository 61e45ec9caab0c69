"""TensorBoard's files are worth no run."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from torch.utils import tensorboard

from spdf_dist.training.callbacks import TensorBoard
from spdf_dist.training.run_folder import RunFolder


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
