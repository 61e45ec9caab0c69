"""The messages of a run before its first step."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from spdf_command import run_spdf

from spdf_dist.base.numbers import duration
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.data.loader import open_mixture
from spdf_dist.training import opening
from spdf_dist.training.callbacks import Progress
from spdf_dist.training.opening import Opening, data_lines

CPU = torch.device("cpu")


def test_a_run_out_of_proportion_says_so_before_its_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "available_memory", lambda device: 8 * 10**9)
    found = Opening.of_pretraining(load_config(PretrainConfig, "gpt3_xl", ["device=cpu"]), CPU).early()
    text = "\n".join(found)
    assert "1,315,723,264 parameters" in text and "FLOPs per step" in text
    assert "years in all" in text or "days in all" in text
    assert "WARNING: the run needs about" in text and "8 GB free" in text


def test_a_run_that_fits_says_nothing_early(tiny_config: Path) -> None:
    assert Opening.of_pretraining(load_config(PretrainConfig, str(tiny_config)), CPU).early() == []


def test_a_precision_that_the_machine_emulates_is_named(tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "product_rate", lambda precision, device: 1e9 if precision == "bf16" else 30e9)
    config = load_config(PretrainConfig, str(tiny_config), ["training.precision=bf16"])
    (warning,) = Opening.of_pretraining(config, CPU).warnings()
    assert "bf16 is emulated on this machine and 30.0 times slower than fp32" in warning


def test_repeats_of_the_data_are_named(tiny_config: Path, tiny_data) -> None:  # type: ignore[no-untyped-def]
    config = load_config(PretrainConfig, str(tiny_config), ["training.train_tokens=1000000"])
    train = open_mixture(config.data.train, 32, 1)
    reads, repeats = data_lines(config, train)
    assert reads.startswith("trains on 1,000,000 tokens; the training data hold ")
    passes = 1_000_000 / (train.num_sequences * 32)
    assert repeats == f"repeats {tiny_data.train}: {passes:.3g} passes over its sequences"


def test_a_long_step_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("pretrain", start_step=0, total_steps=10)
    clock = iter((0.0, 20.0, 30.0, 40.0, 50.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress.before_step(1)
    for done in (1, 2, 3, 4):
        progress.on_step_progress(1, done, 4)
    assert capsys.readouterr().err.splitlines() == [
        "pretrain: step 1: micro-batch 1 of 4, 60 s left in this step",
        "pretrain: a micro-batch took 10 s: about 40 s per step, 6.67 min in all",
        "pretrain: step 1: micro-batch 3 of 4, 13.3 s left in this step",
    ]


def test_a_micro_batch_on_a_gpu_has_finished_when_it_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]  # kernels take 10 s each, and starting them nothing
    finished = []

    def synchronize() -> None:
        finished.append(clock[0])
        clock[0] += 10

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    progress = Progress("pretrain", start_step=0, total_steps=10)
    for step in (1, 2):
        progress.before_step(step)
        for done in (1, 2, 3, 4):
            progress.on_step_progress(step, done, 4)
    assert "a micro-batch took 10 s" in capsys.readouterr().err
    assert len(finished) == 2, "the device must not wait later"


def test_units() -> None:
    assert [duration(s) for s in (0.5, 100, 600, 86400, 5e6, 1e9)] == [
        "0.5 s",
        "100 s",
        "10 min",
        "24 h",
        "57.9 days",
        "31.7 years",
    ]


def test_run_and_dry_run_tell_the_same(tiny_config: Path, tmp_path: Path) -> None:
    done = run_spdf("pretrain", tiny_config, f"run_dir={tmp_path / 'run'}", "training.train_tokens=1536")
    assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "run/result.json").read_text())["steps"]
    dry = run_spdf("pretrain", tiny_config, "training.train_tokens=1536", "--dry-run")
    for words in ("per step and", "in all: matrix products run at", "trains on 1,536 tokens; the training data hold"):
        assert words in done.stderr and words in dry.stdout
    validates = next(line for line in done.stderr.splitlines() if "validates" in line)
    assert validates.startswith("pretrain: validates on 16 sequences once: ")
    assert validates.removeprefix("pretrain: ").split(" at least ")[0] in dry.stdout
    last = done.stderr.splitlines()[-1]
    assert last == f"pretrain: complete after {steps} steps; checkpoint {tmp_path}/run/checkpoints/step_{steps}"
    assert "parameters (" in done.stderr and "a micro-batch took" in done.stderr
