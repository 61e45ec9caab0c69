"""The rank of the process, from the variables of every launcher."""

from __future__ import annotations

import time

import pytest

from spdf_dist.base.rank_variables import Ranks, discover
from spdf_dist.config.errors import UserError
from spdf_dist.parallel import groups


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1, "the launcher")),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            (1, 2, 1, "MPI"),
        ),
        (
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"},
            (5, 6, 2, "Slurm"),
        ),
        # A batch shell has SLURM_* variables but no step. There the program spawns its own ranks.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, None),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9"},
            (0, 2, 0, "the launcher"),
        ),
    ],
)
def test_discover(env, expected):
    found = discover(env)
    assert (found and (found.rank, found.world_size, found.local_rank, found.source)) == expected


def test_rank_variables_of_no_rank():
    for rank, size in (("5", "2"), ("-1", "2"), ("0", "0")):
        with pytest.raises(UserError, match=f"name rank {rank} of {size}"):
            discover({"RANK": rank, "WORLD_SIZE": size})


def test_rank_variables_that_are_no_numbers():
    with pytest.raises(UserError, match="not numbers"):
        discover({"RANK": "first", "WORLD_SIZE": "2"})


def test_a_rank_that_waits_long_says_for_whom(monkeypatch, capsys):
    monkeypatch.setattr(groups, "PATIENCE_SECONDS", 0.01)
    for rank in range(3):
        with groups.tells_of_waiting(Ranks(rank, 3, rank, "the launcher"), "tcp://n1:29500"):
            time.sleep(0.1)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("rank 0 waits for 2 other ranks of the launcher at tcp://n1:29500; unset RANK")
    assert second.startswith("rank 1 ")
