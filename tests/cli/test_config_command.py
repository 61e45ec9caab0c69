"""`spdf config`, and errors of `run_command` for paths that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from spdf_dist.cli.main import run_command
from spdf_dist.config.load import shipped_configs


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", name]) == 0
    assert yaml.safe_load(capsys.readouterr().out)


def test_the_list_says_what_each_config_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config"]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in rows] == shipped_configs()
    assert all(10 < len(text) <= 120 for _, text in rows)


def test_a_workflow_has_its_base_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "gpt3_xl_e2e", "jobs.report=null"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert "base" not in tree and tree["jobs"]["report"] is None and tree["variants"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sparsity.pattern=2:4", "pattern 2:4 has level 0.5, not 0.75"),
        ("sparsity.pattern=4:2", "4:2 keeps all or more"),
        ("sparsity.pattern=block:100", "W_Q of shape 768x768 does not divide into blocks of 100"),
    ],
)
def test_a_pattern_that_does_not_fit(override: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["flops", "gpt2_small_s75", override]) == 2
    assert words in capsys.readouterr().err


def test_a_level_that_no_decimal_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "gpt2_small", "sparsity.pattern=1:3", "sparsity.level=0.666667"]) == 0


def test_a_fine_tuning_needs_its_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["finetune", "finetune/e2e", "--dry-run"]) == 2
    assert "finetune.checkpoint: is not set" in capsys.readouterr().err


def test_a_name_that_no_file_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "x" * 300]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "File name too long" in error


def test_a_key_that_stands_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("training: {lr: 2e-3}\nseed: 1\ntraining: {clip_grad: 1.0}\n")
    assert run_command(["config", str(path)]) == 2
    assert "the key 'training' is given twice" in capsys.readouterr().err
