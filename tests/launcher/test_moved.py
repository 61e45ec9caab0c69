"""The config of a run whose workflow was moved."""

from __future__ import annotations

from pathlib import Path

import yaml
from spdf_launcher.moved import follow


def test_paths_below_the_old_folder_follow(tmp_path: Path) -> None:
    run = tmp_path / "jobs/pretrain/s75/run"
    run.mkdir(parents=True)
    config = {
        "run_dir": "/old/flow/jobs/pretrain/s75/run",
        "seed": 1,
        "training": {"lr": 1e-05},
        "data": {"train": [{"path": "/old/flow/jobs/packed/out", "weight": 1.0}, {"path": "/old/flow2/packed"}]},
        "note": "not/old/flow/jobs",
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    follow(run, "pretrain/s75")
    moved = [{"path": f"{tmp_path}/jobs/packed/out", "weight": 1.0}, {"path": "/old/flow2/packed"}]
    expected = config | {"run_dir": str(run), "data": {"train": moved}}
    assert yaml.safe_load((run / "config.yaml").read_text()) == expected
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_what_is_no_run_of_this_job_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "jobs/pretrain/run"
    follow(run, "pretrain")
    run.mkdir(parents=True)
    for text in ("run_dir: /elsewhere/run\n", f"run_dir: {run}   # as it was written\n", "- 1\n", "a: [\n", ""):
        (run / "config.yaml").write_text(text)
        follow(run, "pretrain")
        assert (run / "config.yaml").read_text() == text
