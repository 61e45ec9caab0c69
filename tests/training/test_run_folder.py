"""Run folders: their owner, interrupted starts, and errors from full disks and damaged files."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from spdf_dist.base.atomic_files import temporary_beside
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.schema import CheckpointConfig, PretrainConfig, TrainingConfig, ValidationConfig
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.training.run_folder import RunFolder

OLD = PretrainConfig()
NEW = dataclasses.replace(OLD, training=TrainingConfig(lr=1e-3))


def begun(path: Path) -> Path:
    """A run that was started but has not done a step."""
    RunFolder(path).open(OLD)
    (path / "execution.json").write_text('{"layers": {}}')
    (path / "tensorboard" / "events").write_text("")
    return path


def test_a_run_that_did_nothing_gives_way_to_the_corrected_one(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run / "checkpoints" / "step_1.tmp").mkdir()
    RunFolder(run).open(NEW)
    assert "lr: 0.001" in (run / "config.yaml").read_text()
    assert not (run / "execution.json").exists() and not list((run / "tensorboard").iterdir())


def test_a_run_dir_that_is_a_link_to_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"run is a link to a folder that does not exist"):
        RunFolder(tmp_path / "run").open(OLD)


def test_the_end_of_a_run_leaves_no_holder_file_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = RunFolder(tmp_path / "run")
    folder.open(OLD)
    assert (tmp_path / "run/.lock.holder").exists()
    folder.close()
    assert not (tmp_path / "run/.lock.holder").exists()


def test_a_deletion_that_was_killed_leaves_nothing_after_the_next_start(tmp_path: Path) -> None:
    """Also in a run whose steps are all done, in which no save comes that would remove it."""
    run = begun(tmp_path / "run")
    (run / "checkpoints" / "step_12").mkdir()
    temporary_beside(run / "checkpoints" / "step_3").mkdir()
    RunFolder(run).open(OLD)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_12"]


@pytest.mark.parametrize("what", ["checkpoints/step_1", "metrics.jsonl", "result.json"])
def test_a_run_that_did_something_stays(what: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run / what).mkdir() if "step" in what else (run / what).write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"holds another run \(training.lr: 0.0006 -> 0.001\)"):
        RunFolder(run).open(NEW)
    assert (run / "execution.json").exists() and "lr: 0.0006" in (run / "config.yaml").read_text()
    RunFolder(run).open(OLD)


def test_a_person_s_own_config_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {lr: 1e-3}\n")
    with pytest.raises(UserError, match="holds another run"):
        RunFolder(tmp_path).open(OLD)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_what_a_start_leaves_that_was_killed_before_its_config_is_taken(tmp_path: Path) -> None:
    for name in ("checkpoints", "logs", "tensorboard"):
        (tmp_path / name).mkdir()
    (tmp_path / ".lock").touch()
    temporary_beside(tmp_path / "config.yaml").write_text("mod")
    RunFolder(tmp_path).open(OLD)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "checkpoints" / "step_3").mkdir()
    with pytest.raises(UserError, match="not empty and holds no run"):
        RunFolder(tmp_path).open(OLD)


def test_the_config_is_the_first_thing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Path.mkdir

    def killed(path: Path, *arguments: int, **more: bool) -> None:
        if path.name == "checkpoints":
            raise KeyboardInterrupt
        made(path, *arguments, **more)

    monkeypatch.setattr(Path, "mkdir", killed)
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path / "run").open(OLD)
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"a: *b"])
def test_a_config_that_cannot_be_read_is_a_line(content: bytes, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config.yaml cannot be read") as error:
        RunFolder(run).open(OLD)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["5", "{}", '{"step": "x"}', "[1]"])
def test_a_line_that_is_no_metrics_line_is_named(line: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UserError, match="line 2 is not a metrics record") as error:
        folder.cut_metrics(1)
    assert "\n" not in str(error.value)


def test_metrics_are_cut_to_the_step_that_a_run_goes_on_from(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lines = [{"step": 1}, {"step": 2}, {"step": 2, "val_loss": 1.0}, {"step": 3}]
    content = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1'
    for validated, kept in ((True, lines[:3]), (False, lines[:2])):
        folder.metrics.write_text(content)
        folder.cut_metrics(2, validated=validated)
        assert list(map(json.loads, folder.metrics.read_text().splitlines())) == kept


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "run")
    folder = RunFolder(run)
    (run / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(SpdfError, match=r"metrics.jsonl cannot be written: No space left on device"):
        folder.append_metrics(['{"step": 1}\n'])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpdfError, match=r"config.yaml cannot be written: No space left on device"):
        folder.open(OLD)


def test_what_may_differ_when_a_run_goes_on(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    RunFolder(run).open(dataclasses.replace(OLD, checkpoint=CheckpointConfig(interval=7, keep=9)))
    with pytest.raises(UserError, match=r"validation.batches: 8 -> 9"):
        RunFolder(run).open(dataclasses.replace(OLD, validation=ValidationConfig(batches=9)))


def test_the_tokenizer_outlives_what_it_was_copied_from(tiny_data: Any, tmp_path: Path) -> None:
    source = tmp_path / "pruned" / "sp.model"
    source.parent.mkdir()
    shutil.copyfile(tiny_data.tokenizer, source)
    tokenizer = load_tokenizer(source)
    folder = RunFolder(begun(tmp_path / "run"))
    folder.keep_tokenizer(tokenizer)
    shutil.rmtree(source.parent)
    assert load_tokenizer(folder.tokenizer).digest == tokenizer.digest
