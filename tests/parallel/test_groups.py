"""The rendezvous of ranks whose launcher does not set one."""

from __future__ import annotations

import pytest
import torch

from spdf_dist.base.rank_variables import RENDEZVOUS, discover
from spdf_dist.config.errors import UserError
from spdf_dist.parallel.groups import check_interface, choose_device, rendezvous


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "the 2 ranks of the launcher cannot find each other: MASTER_ADDR and MASTER_PORT must be set"),
        ({"MASTER_ADDR": "127.0.0.1"}, "cannot find each other: MASTER_PORT must be set"),
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


def test_an_interface_that_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib77")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME=ib77: this machine has no interface ib77 \(it has .*lo"):
        check_interface()


def test_a_rank_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv(RENDEZVOUS, raising=False)
    assert choose_device("auto", 3) == torch.device("cuda", 0)
    monkeypatch.setenv(RENDEZVOUS, "file")  # ranks started by spdf see the same devices as this process
    with pytest.raises(UserError, match="local rank 3 has no GPU"):
        choose_device("auto", 3)
