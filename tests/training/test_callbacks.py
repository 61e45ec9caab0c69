"""Callbacks: hooks, state, trackers. A disk that refuses their files does not end a run."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import STEP, losses, train
from spdf_command import read_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.extensions import installed
from spdf_dist.training.callbacks import Callback, Callbacks, MetricsFile, StepMetrics, TensorBoard
from spdf_dist.training.event_file import EventFile
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.setup import hfu_over_mfu


@pytest.mark.parametrize("failing", ["__init__", "add_scalars", "close"])
def test_a_disk_that_does_not_take_tensorboard_s_files_is_one_warning(
    failing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventFile, failing, full)
    board = TensorBoard(RunFolder(tmp_path), 0, {"qkv": 0.75})
    for step in (1, 2):
        board.after_validation(step, 3.0)
    board.on_end()
    assert capsys.readouterr().err == f"WARNING: {tmp_path}/tensorboard is no longer written: No space left on device\n"


@pytest.mark.parametrize("how", ["deleted", "folder deleted", "folder renamed"])
def test_tensorboard_files_that_disappear_are_one_warning_at_most(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = TensorBoard(RunFolder(tmp_path), 0, {"qkv": 0.75})
    board.after_validation(1, 3.0)
    folder, other = tmp_path / "tensorboard", tmp_path / "renamed"
    if how == "deleted":
        next(folder.iterdir()).unlink()
    elif how == "folder deleted":
        shutil.rmtree(folder)
    else:
        folder.rename(other)
    for step in (2, 3):
        board.after_validation(step, 2.0)
    board.on_end()
    said = capsys.readouterr().err
    if how == "folder renamed":  # the open file is still in it
        assert said == ""
        assert [event.step for event in EventAccumulator(str(other)).Reload().Scalars("validation/loss")] == [1, 2, 3]
    else:
        assert said == f"WARNING: {folder} is no longer written: the file has been deleted\n"


def test_tensorboard_hides_the_steps_that_a_run_does_again_also_when_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start, steps in ((0, (1, 2, 3)), (1, (2, 3))):
        board = TensorBoard(RunFolder(tmp_path), start, {})
        for step in steps:
            board.after_validation(step, 10.0 * start + step)
        board.on_end()
        monkeypatch.setattr(time, "time", lambda: 1.0e9)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("validation/loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 12.0), (3, 13.0)]


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
    ratio = hfu_over_mfu(config, config.model, config.sparsity, {"qkv": execution})
    assert ratio == pytest.approx(over_mfu, rel=0.01)
    board = TensorBoard(RunFolder(tmp_path), 0, {}, ratio)
    board.after_step(StepMetrics(1, 2, 3, 4.0, 1e-3, 1.0, 5.0, 6.0, 7, 8, 0.2, 0), {})
    board.on_end()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("speed/mfu")[0].value == pytest.approx(0.2)
    assert events.Scalars("speed/hfu")[0].value == pytest.approx(0.2 * ratio)


OUTSIDE = """
import json
from spdf_dist.training.callbacks import Callback

class Recorder(Callback):
    def __init__(self, run, path, every=1):
        self.path, self.every, self.seen = path, every, [f"made for {run.kind} of {run.total_steps} steps"]

    def load_state_dict(self, state):
        self.seen.append(f"goes on after {state['steps']}")

    def state_dict(self):
        return {"steps": self.steps}

    def on_start(self):
        self.seen.append("start")

    def before_step(self, step):
        self.steps = step

    def after_step(self, metrics, phases_ms):
        assert {"data", "forward", "backward", "reduce", "update"} == set(phases_ms)
        if metrics.step % self.every == 0:
            self.seen.append(f"step {metrics.step}")

    def on_step_progress(self, step, done, total):
        if step == 1:
            self.seen.append(f"micro-batch {done}/{total}")

    def before_validation(self, step):
        self.seen.append(f"validates {step}")

    def on_validation_progress(self, step, done, total):
        self.seen.append(f"{done}/{total}")

    def after_validation(self, step, loss):
        self.seen.append(f"validated {step}")

    def before_checkpoint(self, step):
        self.seen.append(f"saves {step}")

    def after_checkpoint(self, step, path, stalled):
        assert (path / "manifest.json").exists() and stalled > 0
        self.seen.append(f"saved {step}")

    def on_end(self):
        open(self.path, "w").write(json.dumps(self.seen))
"""


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """A callback from one file of another distribution, and the config keys that select it."""
    site = tmp_path / "site"
    (site / "other-1.dist-info").mkdir(parents=True)
    (site / "other_callback.py").write_text(OUTSIDE)
    (site / "other-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (site / "other-1.dist-info" / "entry_points.txt").write_text(
        "[spdf.callbacks]\nrecorder = other_callback:Recorder\n"
    )
    monkeypatch.syspath_prepend(site)
    installed.cache_clear()  # an earlier test of this process may have filled it
    yield (f"callbacks.recorder.path={tmp_path}/seen.json", "callbacks.recorder.every=4", "checkpoint.interval=8")
    installed.cache_clear()


def test_a_callback_of_another_package_is_one_file(
    recorder: tuple[str, ...], tiny_config: Path, tmp_path: Path
) -> None:
    train(tiny_config, tmp_path / "run", *recorder)
    assert json.loads((tmp_path / "seen.json").read_text()) == [
        *("made for pretrain of 12 steps", "start"),
        *("micro-batch 1/4", "micro-batch 2/4", "micro-batch 3/4", "micro-batch 4/4", "step 4"),
        *("validates 6", "1/4", "2/4", "3/4", "4/4", "validated 6"),
        *("step 8", "saves 8", "saved 8", "step 12"),
        *("validates 12", "1/4", "2/4", "3/4", "4/4", "validated 12", "saves 12", "saved 12"),
    ]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_12")
    (tmp_path / "run" / "result.json").unlink()
    train(tiny_config, tmp_path / "run", *recorder)
    assert json.loads((tmp_path / "seen.json").read_text())[:2] == [
        "made for pretrain of 12 steps",
        "goes on after 8",
    ]


def test_every_callback_is_closed_when_one_of_them_fails() -> None:
    closed = []

    class Closing(Callback):
        def __init__(self, name: str, error: Exception | None = None) -> None:
            self.name, self.error = name, error

        def on_end(self) -> None:
            closed.append(self.name)
            if self.error is not None:
                raise self.error

    failing = [Closing("first"), Closing("second", ValueError("of the second")), Closing("third", OSError("later"))]
    with pytest.raises(ValueError, match="of the second"):
        Callbacks({callback.name: callback for callback in [*failing, Closing("last")]}).on_end()
    assert closed == ["first", "second", "third", "last"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.wandbb={}", r"callbacks.wandbb: no such callback.*wandb"),
        ("callbacks.profiler=3", "callbacks.profiler: expected its options as keys and values, got 3"),
        ("callbacks.profiler.begin=3", "callbacks.profiler: .*begin"),
        ("callbacks.profiler.steps=0", "callbacks.profiler: start and steps must be 1 or more"),
    ],
)
def test_a_callback_that_cannot_be_made_is_a_line(
    override: str, message: str, tiny_config: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny_config, tmp_path / "run", override)


def test_lines_that_the_disk_refuses_for_a_moment_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    metrics = MetricsFile(folder)
    append, refused = folder.append_metrics, [2, 3]

    def sometimes(lines: list[str]) -> None:
        if metrics.count in refused:
            raise SpdfError("metrics.jsonl cannot be written: Disk quota exceeded")
        append(lines)

    monkeypatch.setattr(folder, "append_metrics", sometimes)
    for metrics.count in range(1, 6):  # type: ignore[attr-defined]
        metrics.after_validation(metrics.count, 1.0)  # type: ignore[attr-defined]
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("Disk quota exceeded; training continues") == 1


NORM = "norm/gradient/layers.0.W_Q"


def further_metrics(run: Path) -> dict[int, float]:
    """The norm ``NORM`` of steps 3 and 6, from the run's metrics file."""
    found = {line["step"]: line["metrics"][NORM] for line in read_metrics(run) if "metrics" in line}
    assert sorted(found) == [3, 6]
    return found


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of W&B's offline file after its header: a LevelDB log in blocks of 32 KiB, header included."""
    at, parts = 7, b""
    log = bytes(7) + log
    while at + 7 <= len(log):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        parts += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            yield parts
            parts = b""


def test_wandb_offline_holds_the_run_and_a_continued_run_goes_on_in_it(tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run = tmp_path / "run"
    how = ("callbacks.wandb.mode=offline", "callbacks.wandb.project=mine", "callbacks.norms.every=3")
    train(tiny_config, run, *how, f"training.train_tokens={5 * STEP}")
    train(tiny_config, run, *how, f"training.train_tokens={6 * STEP}", change=True)
    ids, steps, norms = set(), [], {}
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for content in leveldb_records(file.read_bytes()[7:]):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.project))
            values = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if "train/loss" in values:
                steps.append((int(values["_step"]), json.loads(values["train/loss"])))
            if NORM in values:
                norms[int(values["_step"])] = json.loads(values[NORM])
    assert len(ids) == 1 and next(iter(ids))[1] == "mine"
    assert dict(steps) == pytest.approx({step: loss for step, (loss, _, _) in losses(run).items()})
    assert norms == pytest.approx(further_metrics(run))


def test_mlflow_offline_holds_the_run_and_a_continued_run_goes_on_in_it(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    run = tmp_path / "run"
    how = ("callbacks.mlflow={}", "callbacks.norms.every=3")
    train(tiny_config, run, *how, f"training.train_tokens={5 * STEP}")
    train(tiny_config, run, *how, f"training.train_tokens={6 * STEP}", change=True)
    client = MlflowClient((run / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("spdf").experiment_id])
    assert found.data.params["training.lr"] == "0.005" and found.info.status == "FINISHED"
    history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "train/loss")}
    assert history == pytest.approx({step: loss for step, (loss, _, _) in losses(run).items()})
    norms = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, NORM)}
    assert norms == pytest.approx(further_metrics(run))


def test_a_profiler_window_is_written_and_tensorboard_has_config_and_phases(tiny_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config, run, "callbacks.profiler={start: 2, steps: 2}", f"training.train_tokens={5 * STEP}")
    trace = json.loads((run / "profile" / "rank_0_steps_2_to_3.json").read_text())
    assert any("addmm" in event.get("name", "") or "mm" in event.get("name", "") for event in trace["traceEvents"])
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"time/forward_ms", "time/backward_ms", "time/data_ms", "time/checkpoint_stall_s"} <= set(
        events.Tags()["scalars"]
    )
    assert "config/text_summary" in events.Tags()["tensors"]
