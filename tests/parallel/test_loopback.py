"""Training on a machine whose loopback interface, host name or address of a master is of no use."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.parallel.loopback import check_loopback

TWO_RANKS = ("parallel.data=2", "training.micro_batch_size=4")
OWN_NETWORK = ("unshare", "--map-root-user", "--net")
"""Prefix of a command without a network. A new network's loopback interface is down."""

needs_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*OWN_NETWORK, "true"], capture_output=True).returncode != 0,
    reason="the system permits no network namespaces, in which the loopback interface can be down",
)


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EADDRNOTAVAIL, UserError, r"loopback address 127\.0\.0\.1.*Cannot assign.*ip link set lo up"),
        (errno.EAFNOSUPPORT, UserError, r"loopback address .*not supported"),
        (errno.EMFILE, SpdfError, "a socket cannot be opened: Too many open files"),
    ],
)
def test_a_refused_address_is_told_from_too_few_open_files(number, kind, message, monkeypatch):
    def refuse(self, address):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse, raising=False)
    with pytest.raises(SpdfError, match=message) as refused:
        check_loopback()
    assert type(refused.value) is kind


@needs_namespaces
@pytest.mark.parametrize("ranks", [(), TWO_RANKS], ids=["one rank", "two ranks"])
def test_training_without_a_loopback_interface_is_one_line_soon(ranks, tiny_config: Path, tmp_path: Path):
    done = subprocess.run(
        [*OWN_NETWORK, sys.executable, "-m", "spdf_dist", "pretrain", tiny_config, f"run_dir={tmp_path}/run", *ranks],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("spdf pretrain: the loopback address")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


INITIALIZE = """
from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.parallel.groups import initialize
initialize(SINGLE_PROCESS, 1, None, "cpu")
import torch, torch.distributed as dist
total = torch.ones(1)
dist.all_reduce(total)
print(total.item())
"""


def test_one_rank_needs_no_name_no_interface_and_no_master():
    left_over = {"MASTER_ADDR": "a-machine-that-is-gone", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "ib77"}
    done = subprocess.run(
        [sys.executable, "-c", INITIALIZE],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", **left_over},
    )
    assert done.stdout == "1.0\n", done.stderr
