"""Which rank this process is, and starting ranks when no launcher did. Imports no torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from spdf_dist.config.errors import UserError

RENDEZVOUS = "SPDF_RENDEZVOUS_FILE"
GRACE_SECONDS = 30.0
"""How long the other ranks may take to end after one has failed."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers, and who said so."""

    rank: int
    world_size: int
    local_rank: int
    source: str
    rendezvous_file: str | None = None


ALONE = Ranks(0, 1, 0, "this process alone")


def discover(env: Mapping[str, str] = os.environ) -> Ranks | None:
    """The rank that a launcher gave this process; None when no launcher started it.

    torchrun, deepspeed and our own spawning set RANK and WORLD_SIZE; mpirun OMPI_COMM_WORLD_*; a Slurm step
    SLURM_STEP_ID and SLURM_PROCID (a batch shell has no step: there the program spawns its own ranks).
    """
    try:
        if "RANK" in env and "WORLD_SIZE" in env:
            rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
            source = "the launcher" if RENDEZVOUS not in env else "spdf"
            return Ranks(rank, size, int(env.get("LOCAL_RANK", rank)), source, env.get(RENDEZVOUS))
        if "OMPI_COMM_WORLD_RANK" in env:
            local = int(env.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
            return Ranks(int(env["OMPI_COMM_WORLD_RANK"]), int(env["OMPI_COMM_WORLD_SIZE"]), local, "MPI")
        if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
            size = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
            return Ranks(int(env["SLURM_PROCID"]), size, int(env.get("SLURM_LOCALID", "0")), "Slurm")
    except ValueError as error:
        raise UserError(f"the launcher's rank variables are not numbers: {error}") from None
    return None


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def spawn(arguments: Sequence[str], count: int, log_dir: Path | None) -> int:
    """Run ``python -m spdf_dist ARGUMENTS`` as ``count`` ranks on this machine and return the job's exit code.

    Cores are divided among the ranks. Rank 0 keeps the terminal; the others write to ``log_dir/rank_N.log``.
    SIGTERM, SIGUSR1 and Ctrl-C go on to every rank. When one rank fails the others are ended.
    """
    with tempfile.TemporaryDirectory(prefix="spdf-") as folder:
        environment = {
            **os.environ,
            "WORLD_SIZE": str(count),
            RENDEZVOUS: str(Path(folder) / "rendezvous"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count))),
        }
        # Ranks on one machine talk over loopback: the host name may not resolve on a laptop.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        processes: list[subprocess.Popen[bytes]] = []
        for rank in range(count):
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = None
            if rank and log_dir is not None:
                log_dir.mkdir(parents=True, exist_ok=True)
                log = (log_dir / f"rank_{rank}.log").open("ab")
            command = [sys.executable, "-m", "spdf_dist", *arguments]
            # A session of its own: Ctrl-C reaches this process alone, which passes it on exactly once.
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
            if log is not None:
                log.close()
        return wait_all(processes)


def wait_all(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for every rank, passing signals on; the first failure decides the exit code and ends the others."""
    pending_signals: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        pending_signals.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    failure: int | None = None
    deadline: float | None = None
    try:
        while any(process.poll() is None for process in processes):
            while pending_signals:
                number = pending_signals.pop(0)
                for process in processes:
                    if process.poll() is None:
                        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
            for process in processes:
                if failure is None and process.poll() not in (None, 0):
                    failure = process.returncode
                    deadline = time.monotonic() + GRACE_SECONDS
            crashed = any((process.returncode or 0) < 0 for process in processes)
            if deadline is not None and (crashed or time.monotonic() > deadline):
                for process in processes:
                    if process.poll() is None:
                        process.kill()
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    codes = [process.returncode for process in processes]
    if failure is None:
        failure = next((code for code in codes if code), 0)
    return 128 - failure if failure < 0 else failure
