"""Hostfiles are read before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from spdf_launcher.hostfile import read_hostfile

from spdf_dist.config.errors import UserError

FLOW = """
jobs:
  pretrain:
    kind: pretrain
    set: {training: {train_tokens: 160, global_batch_size: 4, micro_batch_size: 1}, model.seq_length: 8}
    resources: {nodes: 2, ranks_per_node: 2}
  dense: {kind: densify, set: {checkpoint: "${jobs.pretrain.run_dir}"}}
"""


def test_hosts_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# nodes\n\nn2 slots=8\n  me@n1.cluster\tslots=4 \n")
    assert read_hostfile(path) == {"n2": (8, 3), "me@n1.cluster": (4, 4)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no host: write one line `HOST slots=N` per node"),
        ("# none\n\n", "names no host: write one line `HOST slots=N` per node"),
        ("h1\n", "line 1: expected `HOST slots=N`, got 'h1'"),
        ("h1 slots=2\nh2 slots=two\n", "line 2: expected `HOST slots=N`, got 'h2 slots=two'"),
        ("h1 slots=0\n", "line 1: expected `HOST slots=N`, got 'h1 slots=0'"),
        ("-oProxyCommand=x slots=1\n", "line 1: expected `HOST slots=N`, got '-oProxyCommand=x slots=1'"),
        ("h1 slots=2\n\nh1 slots=2\n", "line 3: h1 is already in line 1"),
    ],
)
def test_what_is_no_hostfile_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_hostfile(path)
    assert str(error.value) == f"--hostfile {path}: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h1\n", "line 1: expected `HOST slots=N`, got 'h1'"),
        ("h1 slots=2\n", "names 1 of the 2 nodes of jobs.pretrain"),
        ("h1 slots=2\nh2 slots=1\nh3 slots=1\n", "line 2: h2 has slots=1, but jobs.pretrain has 2 ranks per node"),
    ],
)
def test_a_hostfile_without_room_starts_nothing(bench, text: str, said: str) -> None:  # type: ignore[no-untyped-def]
    bench.file.write_text(FLOW)
    (bench.path / "hosts").write_text(text)
    words = ("run", str(bench.file), "--dir", str(bench.dir), "--on", "deepspeed", "--hostfile", "hosts")
    assert bench.spdf(*words, "--dry-run", code=2) == f"spdf run: --hostfile {bench.path}/hosts: {said}\n"
    (bench.path / "hosts").write_text("h1 slots=2\nh2 slots=4\nh3 slots=1\n")
    assert "2 of 2 jobs to run" in bench.spdf(*words, "--dry-run")
