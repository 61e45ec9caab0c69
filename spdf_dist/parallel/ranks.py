"""Starts ranks if no launcher did, and decides which rank reports a failure. It imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.base.cpu import cores
from spdf_dist.base.rank_variables import RENDEZVOUS, SINGLE_PROCESS, discover
from spdf_dist.base.signal_guard import signal_when_parent_ends
from spdf_dist.base.signals import STOP_SIGNALS, ReceivedSignals
from spdf_dist.config.errors import UserError

PARENT = "SPDF_PARENT_PID"
FAILURE = ".failure"
"""Suffix of the file beside the rendezvous file. The first rank that fails writes its error there."""
GRACE_SECONDS = 30.0
"""Time for the other ranks to end after one has failed; then they are killed."""
LOOPBACK = "lo"


def free_port() -> int:
    """A TCP port on which no process listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(arguments: Sequence[str], count: int, log_dir: Path) -> int:
    """Run ``python -P -m spdf_dist ARGUMENTS`` as ``count`` ranks on this machine and return the job's exit code.

    See ``run_ranks``.
    """
    # -P: a file in the current folder must not replace a module.
    return run_ranks([sys.executable, "-P", "-m", "spdf_dist", *arguments], count, log_dir)


def run_ranks(command: Sequence[str], count: int, log_dir: Path) -> int:
    """Run ``command`` as ``count`` ranks on this machine and return the job's exit code.

    Cores are divided among the ranks. Rank 0 keeps the terminal; the others write to ``log_dir/rank_N.log``. This
    process prints the error of another rank if that failed first. SIGTERM, SIGUSR1, Ctrl-C and SIGHUP are forwarded to
    every rank. Ranks that call ``follow_parent`` get SIGTERM when this process dies. If one rank fails, the others are
    ended.

    Raises UserError if the logs cannot be written.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with (
        tempfile.TemporaryDirectory(prefix="spdf-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as logs,
        ReceivedSignals(STOP_SIGNALS) as received,
    ):
        rendezvous = Path(folder) / "rendezvous"
        environment = {
            **os.environ,
            "WORLD_SIZE": str(count),
            RENDEZVOUS: str(rendezvous),
            PARENT: str(os.getpid()),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count))),
        }
        # Ranks on one machine use loopback, also where a shell profile sets the interface of a cluster.
        environment |= {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            outputs = [logs.enter_context(log_of(log_dir, rank).open("ab")) for rank in range(1, count)]
        except OSError as error:
            raise UserError(f"cannot write to {log_dir}: {error.strerror}") from None
        # Ranks inherit the blocked signals, so that a signal stays pending until they can handle it.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for rank, log in enumerate([None, *outputs]):
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # In a new session, Ctrl-C reaches only this process, which forwards it exactly once.
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            return wait_all(processes, received.got, rendezvous.with_suffix(FAILURE), log_dir)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def log_of(log_dir: Path, rank: int) -> Path:
    """The log file of a rank other than 0."""
    return log_dir / f"rank_{rank}.log"


def wait_all(processes: list[subprocess.Popen[bytes]], pending: list[int], failure_file: Path, log_dir: Path) -> int:
    """Wait for every rank and forward signals. The first failure sets the exit code and ends the other ranks."""
    failure: int | None = None
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        while pending:
            number = pending.pop(0)
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number if number == signal.SIGUSR1 else signal.SIGTERM)
        if failure is None:
            failure = first_failure(processes, failure_file, log_dir)
            if failure is not None:
                deadline = time.monotonic() + GRACE_SECONDS
        crashed = any((process.returncode or 0) < 0 for process in processes)
        if deadline is not None and (crashed or time.monotonic() > deadline):
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)
    if failure is None:
        failure = first_failure(processes, failure_file, log_dir) or 0
    return 128 - failure if failure < 0 else failure


def first_failure(processes: list[subprocess.Popen[bytes]], failure_file: Path, log_dir: Path) -> int | None:
    """The exit code of a rank that has failed, or None. Prints the reason unless rank 0 has printed it."""
    codes = {rank: process.returncode for rank, process in enumerate(processes) if process.poll()}
    if not codes:
        return None
    failed, code = min(codes.items(), key=lambda item: (item[1] > 0, item[0]))  # killed ranks first: they are the cause
    try:
        first, told, line = failure_file.read_text(encoding="utf-8").split(" ", 2)
        failed, code = int(first), int(told)
    except (OSError, ValueError):
        # No rank has written an error. A traceback of rank 0 is on the terminal already.
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log = f", see {log_of(log_dir, failed)}" if failed else ""
        line = f"rank {failed} {how}{log}" if failed or code < 0 else ""
    if line and (failed or code < 0):
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(line, file=sys.stderr)
    return code


def follow_parent() -> None:
    """In a rank that ``run_ranks`` started: unblock signals, and get SIGTERM when the parent process dies.

    The kernel sends SIGTERM, because a parent killed by SIGKILL cannot. Call this after handlers are installed.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    signal_when_parent_ends(signal.SIGTERM)
    if os.getppid() != int(parent):  # the parent has died already
        os.kill(os.getpid(), signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def should_report_error(line: str, code: int) -> bool:
    """Whether this rank should print ``line``, the reason why it ends with exit code ``code``.

    Ranks that ``run_ranks`` started: the first one to fail writes the reason to a file, and the starting process prints
    it if that rank has only a log. Other ranks may write to their logs too. Under another launcher the ranks share a
    terminal, and only one prints; see ``first_failed_rank``.
    """
    try:
        ranks = discover() or SINGLE_PROCESS
    except UserError:
        return True
    if ranks.rendezvous_file is None:
        return ranks.world_size == 1 or first_failed_rank(ranks.rank, code)[0] == ranks.rank
    with contextlib.suppress(OSError), Path(ranks.rendezvous_file).with_suffix(FAILURE).open("x") as file:
        file.write(f"{ranks.rank} {code} {line}")
        return True
    return ranks.rank > 0


def first_failed_rank(rank: int, code: int) -> tuple[int, int]:
    """The rank that reported a failure first, and its exit code: this rank and ``code`` if none has.

    The ranks agree through torch.distributed's store. Before it is initialised they read the same arguments and files
    and fail alike, so the result is rank 0.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return 0, code
    try:
        store = distributed.distributed_c10d._get_default_store()
        first, told = store.compare_set("spdf/failure", "", f"{rank} {code}").split()
    except RuntimeError:  # the rank that hosted the store has ended
        return 0, code
    return int(first), int(told)


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank ended. That rank's error is the one to report."""
    text = str(error)
    return "gloo" in text and any(way in text for way in ("closed by peer", "reset by peer", "Broken pipe"))
