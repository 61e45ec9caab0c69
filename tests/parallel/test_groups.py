"""Where ranks meet when their launcher does not say."""

from __future__ import annotations

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.parallel.groups import rendezvous
from spdf_dist.parallel.ranks import discover


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "2 ranks, from the launcher, cannot meet: MASTER_ADDR and MASTER_PORT must be set"),
        ({"MASTER_ADDR": "127.0.0.1"}, "cannot meet: MASTER_PORT must be set"),
        ({"SLURM_JOB_NODELIST": "node[1-2]", "PATH": ""}, "failed .*: set MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_a_missing_address_is_named(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ranks = discover({"RANK": "0", "WORLD_SIZE": "2"})
    assert ranks is not None
    with pytest.raises(UserError, match=message):
        rendezvous(ranks)
