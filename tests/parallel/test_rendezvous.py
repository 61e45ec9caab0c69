"""The rendezvous of ranks that the program starts itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = """
#include <errno.h>
int flock(int fd, int op) { errno = ENOSYS; return -1; }
"""
MEET = """
import torch, torch.distributed as dist
from spdf_dist.base.rank_variables import discover
from spdf_dist.parallel.groups import initialize
groups = initialize(discover(), 1, None, "cpu")
total = torch.tensor([float(groups.rank + 1)])
dist.all_reduce(total)
print(groups.rank, total.item())
"""


@pytest.mark.distributed
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the shim")
def test_ranks_meet_where_files_have_no_locks(tmp_path: Path) -> None:
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "shim.so", "shim.c"], cwd=tmp_path, check=True)
    environment = os.environ | {
        "LD_PRELOAD": str(tmp_path / "shim.so"),
        "SPDF_RENDEZVOUS_FILE": str(tmp_path / "rendezvous"),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", MEET],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in ranks]
    assert said == [["0", "3.0"], ["1", "3.0"]]
