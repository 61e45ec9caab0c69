"""The environment of a command: closed streams, a full or closed output, `~`, and scripts in the current folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spdf_dist.cli import start
from spdf_dist.cli.main import expand_home, run_command
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig

SPDF = f"{sys.executable} -m spdf_dist"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in ``folder``."""
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_command_works_with_closed_standard_streams(closed, tiny_data, tmp_path):
    pack = f"{SPDF} data pack --input {tiny_data.train.parent}/train.jsonl --tokenizer {tiny_data.tokenizer}"
    done = shell(f"{pack} --out packed --seq-len 32 --workers 2 {closed}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "packed/index.json").is_file()


@pytest.mark.parametrize("closed", [">&- 2>&-", "2> /dev/full", "2> >(exit)"])
def test_training_goes_on_when_nobody_can_hear_it(closed, tiny_config, tmp_path):
    done = shell(f"{SPDF} pretrain {tiny_config} run_dir=run training.train_tokens=1536 {closed}", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "run/result.json").is_file()


def test_what_is_wrong_with_closed_streams_keeps_its_exit_code(tmp_path):
    assert shell(f"{SPDF} inspect nothing >&- 2>&-", tmp_path).returncode == 2
    assert shell(f"{SPDF} no-such-command 2>&-", tmp_path).returncode == 2


def test_a_full_disk_under_the_output_is_one_line(tmp_path):
    done = shell(f"{SPDF} config gpt2_small > /dev/full", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left" in done.stderr


def test_home_in_every_path_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(
        PretrainConfig,
        "gpt2_small",
        [
            "run_dir=~/run",
            "deepspeed=~/ds.json",
            "data.train=[~/a, {path: ~/b, weight: 2}]",
            "data.validation=~/v",
            "data.tokenizer=~/t.model",
        ],
    )
    paths = [config.run_dir, config.deepspeed, config.data.tokenizer]
    paths += [entry.path for entry in (*config.data.train, *config.data.validation)]
    assert paths == [f"{tmp_path}/{name}" for name in ("run", "ds.json", "t.model", "a", "b", "v")]
    keys = ("checkpoint", "train", "validation")
    tuned = load_config(FinetuneConfig, "finetune/gpt3_xl_e2e", [f"finetune.{key}=~/{key}" for key in keys])
    assert [getattr(tuned.finetune, key) for key in keys] == [f"{tmp_path}/{key}" for key in keys]


def test_variables_in_path_keys(tmp_path, monkeypatch):
    """A config file names $SCRATCH, and a shell does not expand it in quotes. It made a folder called $SCRATCH."""
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    given = ["run_dir=$SCRATCH/run", "data.train=['${SCRATCH}/a', {path: $SCRATCH/b}]", "data.tokenizer=a$1b/c$"]
    config = load_config(PretrainConfig, "gpt2_small", given)
    paths = [config.run_dir, *(entry.path for entry in config.data.train)]
    assert paths == [f"{tmp_path}/{name}" for name in ("run", "a", "b")]
    assert config.data.tokenizer == "a$1b/c$"
    for given, key in (("run_dir=$NOWHERE/x", "run_dir"), ("data.train=['${NOWHERE}x']", r"data\.train\[0\]")):
        with pytest.raises(UserError, match=f"config key '{key}': the environment variable NOWHERE of .* is not set"):
            load_config(PretrainConfig, "gpt2_small", [given])
    (tmp_path / "a$NOWHERE").mkdir()  # a folder with such a name
    there = f"{tmp_path}/a$NOWHERE/run"
    assert load_config(PretrainConfig, "gpt2_small", [f"run_dir={there}"]).run_dir == there
    (tmp_path / "x.yaml").write_text("base: gpt2_small\nrun_dir: >\n  runs/x\n")
    assert load_config(PretrainConfig, str(tmp_path / "x.yaml")).run_dir == "runs/x"


def test_home_on_the_command_line(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["~/ckpt", "--out=~/x", "--prompt", "~/text", "--prompt=~/text", "run_dir=~/x", "~nobody-here/x", "a~b"]
    expected = ["/home/me/ckpt", "--out=/home/me/x", *words[2:]]
    assert expand_home(words) == expected


@pytest.mark.parametrize("name", ["tokenize", "random", "queue", "json", "numpy", "yaml"])
def test_no_module_is_imported_from_the_current_folder(name, tiny_data, tmp_path):
    (tmp_path / f"{name}.py").write_text('print("this is my own script"); raise SystemExit(0)')
    pack = f"data pack --input {tiny_data.train.parent}/train.jsonl --tokenizer {tiny_data.tokenizer} --seq-len 32"
    for number, spdf in enumerate((SPDF, Path(sys.executable).with_name("spdf"))):
        if name == "tokenize" and spdf == SPDF:
            continue  # Python imports it for `-m` before our code runs
        done = shell(f"{spdf} {pack} --out packed{number} --workers 2", tmp_path)
        assert "my own script" not in done.stdout + done.stderr
        assert (tmp_path / f"packed{number}/index.json").is_file(), done.stderr


def test_a_current_folder_that_is_gone_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell(f"cd gone; rmdir ../gone; {SPDF} inspect run", tmp_path)
    assert done.returncode == 2 and done.stderr == (
        "spdf: the current folder no longer exists: change to another one\n"
    )


def test_training_goes_on_in_a_folder_whose_name_is_no_utf8_and_with_warnings_as_errors(tiny_config, tmp_path):
    line = f"{SPDF} pretrain {tiny_config} run_dir=$(printf 'r\\xe9') training.train_tokens=1536"
    done = shell(line, tmp_path, PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("r*/result.json"))) == 1


def test_a_job_s_rank_in_the_environment_silences_no_other_command(tiny_data, tmp_path):
    done = shell(f"{SPDF} inspect nothing", tmp_path, RANK="1", WORLD_SIZE="2")
    assert done.returncode == 2 and done.stderr == "spdf inspect: the checkpoint nothing does not exist\n"
    pack = f"data pack --input {tiny_data.train.parent}/train.jsonl --tokenizer {tiny_data.tokenizer} --out packed"
    done = shell(f"{SPDF} {pack}", tmp_path, RANK="1", WORLD_SIZE="2")
    assert done.returncode == 2 and "unset RANK and WORLD_SIZE to pack in one process" in done.stderr


def test_a_full_disk_under_standard_output_is_not_taken_for_another(tiny_data, tmp_path):
    done = shell(f"{SPDF} data info {tiny_data.train} > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "spdf: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("umask", ["0777", "0477"])
def test_a_umask_takes_no_permission_from_the_owner(umask, tiny_data, tmp_path):
    pack = f"data pack --input {tiny_data.train.parent}/train.jsonl --tokenizer {tiny_data.tokenizer} --out packed"
    done = shell(f"umask {umask}; {SPDF} {pack} --seq-len 32 --workers 2", tmp_path)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "packed", tmp_path / "packed/index.json"):
        assert path.stat().st_mode & 0o700 == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_stops_where_proc_is_not_mounted(ranks, tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "PROC", tmp_path / "empty")
    assert run_command(["pretrain", str(tiny_config), f"run_dir={tmp_path}/run", f"parallel.data={ranks}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not describe this process" in line and not (tmp_path / "run").exists()


OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode != 0,
    reason="the system permits no mount namespaces, in which /proc can be hidden from a whole command",
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_whole_command_without_proc_is_one_line(ranks, tiny_config, tmp_path):
    (tmp_path / "empty").mkdir()
    command = f"mount --bind empty /proc && exec {SPDF} pretrain {tiny_config} run_dir=run parallel.data={ranks}"
    done = shell(f"{' '.join(OWN_MOUNTS)} bash -c '{command}'", tmp_path)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.count("\n") == 1 and "/proc does not describe this process" in done.stderr
