"""Starts a Python program as several gloo ranks on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_ranks(program: list[str], count: int, folder: Path, timeout: float = 500) -> str:
    """Run ``python PROGRAM...`` as ``count`` ranks with one core each. Returns rank 0's standard output.

    When a rank fails, the test fails with the output of the first such rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = folder / "rendezvous"
    processes = []
    for rank in range(count):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(rank),
            "SPDF_RENDEZVOUS_FILE": str(rendezvous),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        with (folder / f"rank_{rank}.out").open("w") as out, (folder / f"rank_{rank}.err").open("w") as err:
            processes.append(subprocess.Popen([sys.executable, *program], env=environment, stdout=out, stderr=err))
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = next((rank for rank, code in enumerate(codes) if code), None)
    assert failed is None, f"rank {failed} ended with {codes[failed]}:\n" + (folder / f"rank_{failed}.err").read_text()
    return (folder / "rank_0.out").read_text()
