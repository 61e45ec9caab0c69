"""SparseLinear under DistributedDataParallel and fully_shard (FSDP2): two gloo ranks equal one process."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("data_parallel_ranks.py")


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_equal_one(kind: str, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, str(PROGRAM), kind, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"{kind}: the same values as one process" in run.stdout
