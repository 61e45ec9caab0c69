"""Asynchronous checkpoints: equal bytes, one save at a time, and failures that do not end the run."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from in_process import losses, train
from spdf_command import run_spdf

from spdf_dist.checkpoint.find import is_whole
from spdf_dist.checkpoint.write import CheckpointWriter


def contents(run: Path) -> dict[str, object]:
    """The tensor files of all checkpoints by name, and the reproducible part of each manifest."""
    found: dict[str, object] = {}
    for path in sorted((run / "checkpoints").rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.name == "manifest.json":
            tree = json.loads(path.read_text())
            found[name] = {key: tree[key] for key in ("step", "consumed_tokens", "tensors", "masks", "state")}
    return found


@pytest.mark.parametrize("stage", [0, 1])
def test_an_asynchronous_save_writes_the_same_bytes(tiny_config: Path, tmp_path: Path, stage: int) -> None:
    how = ("checkpoint.interval=2", f"parallel.zero_stage={stage}")
    train(tiny_config, tmp_path / "sync", *how)
    train(tiny_config, tmp_path / "async", *how, "checkpoint.asynchronous=true")
    assert losses(tmp_path / "async") == losses(tmp_path / "sync")
    assert contents(tmp_path / "async") == contents(tmp_path / "sync")


def test_training_goes_on_while_a_checkpoint_is_written(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, seen = CheckpointWriter.write_slices, []

    def slow(self: CheckpointWriter, *arguments: object, **more: object) -> object:
        if threading.current_thread() is not threading.main_thread():
            log = tmp_path / "run" / "metrics.jsonl"
            while log.read_text().count('"loss"') < 8:  # the save of step 5 ends after step 8
                threading.Event().wait(0.01)
            seen.append(is_whole(tmp_path / "run" / "checkpoints" / "step_5"))
        return write(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointWriter, "write_slices", slow)
    train(tiny_config, tmp_path / "run", "checkpoint.asynchronous=true")
    assert seen[0] is False
    assert all(is_whole(tmp_path / "run" / "checkpoints" / f"step_{step}") for step in (5, 10, 12))


@pytest.mark.parametrize(
    ("lost", "until", "kept"),
    [
        (5, 0, ["step_10", "step_12"]),
        (10, 12, ["step_12", "step_5"]),  # in flight when the last step is saved
    ],
)
def test_an_asynchronous_save_that_fails_costs_no_other_step(
    lost: int,
    until: int,
    kept: list[str],
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The save of step ``lost`` fails when step ``until`` is done."""
    write = CheckpointWriter._write_slices

    def full(self: CheckpointWriter, *arguments: object) -> object:
        if self.step == lost:
            while (tmp_path / "run" / "metrics.jsonl").read_text().count('"loss"') < until:
                threading.Event().wait(0.01)
            raise OSError(28, "No space left on device")
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointWriter, "_write_slices", full)
    train(tiny_config, tmp_path / "run", "checkpoint.asynchronous=true")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == kept
    assert f"step_{lost} was not saved: rank 0: No space left on device" in capsys.readouterr().err


@pytest.mark.distributed
def test_ranks_complete_an_asynchronous_save_together_also_after_a_kill(tiny_config: Path, tmp_path: Path) -> None:
    ranks = ("parallel.tensor=2", "parallel.data=2", "checkpoint.interval=3")
    for name in ("sync", "async"):
        more = f"checkpoint.asynchronous={str(name == 'async').lower()}"
        done = run_spdf("pretrain", tiny_config, f"run_dir={tmp_path / name}", *ranks, more)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "async") == contents(tmp_path / "sync")
    expected = losses(tmp_path / "sync")
    half = tmp_path / "async" / "checkpoints" / "step_12"
    half.rename(half.with_name("step_12.tmp"))  # as after a kill during the last save
    (half.with_name("step_12.tmp") / "manifest.json").unlink()
    done = run_spdf("pretrain", tiny_config, f"run_dir={tmp_path / 'async'}", *ranks, "checkpoint.asynchronous=true")
    assert done.returncode == 0 and "continues from step 9" in done.stderr, done.stderr
    assert losses(tmp_path / "async") == expected and is_whole(half)
