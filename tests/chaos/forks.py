"""Runs `spdf` commands in forked children of a process with all imports done, and some in processes of their own.

A forked child calls the `main` of the command line. It has its own session, so that a kill of its process group kills
its workers too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from spdf_dist.base.rank_variables import RENDEZVOUS
from spdf_dist.parallel.ranks import PARENT

DISK_CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "link", "rmdir")
"""File-system calls before which a child can be killed: the effects of earlier calls are on disk."""

SHIM_FOLDER = "CHAOS_SHIM_FOLDER"
"""Variable with the folder of the preloaded ``refuse.c``."""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    """Exit code; -n after signal n."""
    said: str
    """Standard error."""
    seconds: float


def preload() -> None:
    """Import the modules of the commands, so that children do not need to."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import deepspeed  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch
    import torch._dynamo.trace_rules
    import torch.utils.tensorboard
    from deepspeed.runtime.zero import utils  # noqa: F401
    from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401

    import spdf_dist.checkpoint.densify
    import spdf_dist.checkpoint.hf_export
    import spdf_dist.checkpoint.hf_import
    import spdf_dist.cli.main
    import spdf_dist.data.pack
    import spdf_dist.data.tokenizer_training
    import spdf_dist.evaluation.checkpoint
    import spdf_dist.evaluation.generation
    import spdf_dist.training.finetune
    import spdf_dist.training.pretrain

    for point in spdf_dist.cli.main.entry_points().values():
        point.load()
    torch._dynamo.trace_rules.get_torch_obj_rule_map()
    torch.set_num_threads(1)


@dataclass
class Child:
    """A running command, and the pipe of its standard error. A file could fail when the disk is full."""

    pid: int
    pipe: int
    began: float

    def said(self) -> str:
        """The standard error of the command. Call it once, after the command has ended."""
        with os.fdopen(self.pipe, "rb", closefd=True) as pipe:
            return (pipe.read() or b"").decode(errors="replace")


def start(words: Sequence[object], prepare: Callable[[], None] | None = None) -> Child:
    """Fork a child that runs ``spdf WORDS``."""
    sys.stdout.flush()
    sys.stderr.flush()
    out, into = os.pipe()
    os.set_blocking(out, False)
    os.set_blocking(into, False)  # a child that writes more than the pipe can hold does not block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(into)
        return Child(pid, out, time.monotonic())
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as at the start of a command
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(into, 2)
        if prepare is not None:
            prepare()
        from spdf_dist.cli.main import main

        code = main([str(word) for word in words])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: Child, limit: float = 120.0) -> Ended:
    """Wait for a child. After ``limit`` seconds it is killed, and its code is -SIGALRM."""
    while True:
        ended, status = os.waitpid(child.pid, os.WNOHANG)
        seconds = time.monotonic() - child.began
        if ended:
            return Ended(os.waitstatus_to_exitcode(status), child.said(), seconds)
        if seconds > limit:
            os.killpg(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            return Ended(-signal.SIGALRM, child.said(), seconds)
        time.sleep(0.002)


def start_together(commands: Sequence[Sequence[object]]) -> list[Child]:
    """Fork a child for each command. All of them begin at the same moment, when the last one has been forked."""
    gate, opened = os.pipe()

    def prepare() -> None:
        os.close(opened)
        os.read(gate, 1)  # returns when no process holds the other end

    children = [start(words, prepare) for words in commands]
    os.close(opened)
    os.close(gate)
    return children


def start_ranks(words: Sequence[object], count: int, meeting: str) -> list[Child]:
    """Fork the ranks of one job, with the environment that the command line gives to ranks it spawns."""

    def rank(number: int) -> Callable[[], None]:
        return lambda: os.environ.update(
            RANK=str(number),
            LOCAL_RANK=str(number),
            WORLD_SIZE=str(count),
            GLOO_SOCKET_IFNAME="lo",
            **{RENDEZVOUS: meeting, PARENT: str(os.getppid())},
        )

    return [start(words, rank(number)) for number in range(count)]


def start_process(words: Sequence[object]) -> subprocess.Popen[str]:
    """Start the installed command line in a process and session of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "spdf_dist", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_process(process: subprocess.Popen[str], limit: float = 300.0) -> Ended:
    """Wait for a process. After ``limit`` seconds its group is killed, and its code is -SIGALRM."""
    began = time.monotonic()
    try:
        said, code = process.communicate(timeout=limit)[1], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, code = process.communicate()[1], -signal.SIGALRM
    return Ended(code, said, time.monotonic() - began)


def run(
    words: Sequence[object],
    *,
    send: int | None = None,
    after: float = 0.0,
    prepare: Callable[[], None] | None = None,
) -> Ended:
    """Run a command to its end. Send it the signal ``send`` after ``after`` seconds, unless it has ended."""
    child = start(words, prepare)
    if send is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):  # the child has not made its group yet, or has ended
            if send == signal.SIGKILL:
                os.killpg(child.pid, send)
        os.kill(child.pid, send)  # an ended child exists until it is waited for
    return wait(child)


def kill_at(number: int) -> Callable[[], None]:
    """Kill the child with SIGKILL just before its ``number``-th call (from 1) of ``DISK_CALLS``."""

    def prepare() -> None:
        made = 0

        def hooked(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **how: object) -> object:
                nonlocal made
                made += 1
                if made == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **how)

            return call

        for name in DISK_CALLS:
            setattr(os, name, hooked(getattr(os, name)))

    return prepare


REFUSABLE = (
    *("rename", "link", "mkdir", "create", "open to read", "write", "read", "fsync of a file", "fsync of a folder"),
    *("unlink", "truncate", "flock", "mmap", "short write"),
)
"""Kinds of calls that ``refuse.c`` can refuse, in the order of its ``enum kind``."""


def has_shim() -> bool:
    """Whether ``refuse.c`` is loaded into this process."""
    return hasattr(ctypes.CDLL(None), "refuse_begin")


def load_shim(folder: Path) -> None:
    """Compile ``refuse.c`` into ``folder`` and start this program again with it, which is how it gets loaded."""
    shim = folder / "refuse.so"
    source = Path(__file__).with_name("refuse.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl"], check=True)
    os.execve(
        sys.executable,
        [sys.executable, "-P", "-m", "chaos", *sys.argv[1:]],
        {**os.environ, "LD_PRELOAD": str(shim), SHIM_FOLDER: str(folder)},
    )


def refuse(folder: Path, kind: str, first: int, count: int, number: int) -> Callable[[], None]:
    """In the child, ``count`` calls of ``kind`` below ``folder`` fail with errno ``number``, from call ``first`` on."""
    place = os.fsencode(folder)
    return lambda: ctypes.CDLL(None).refuse_begin(place, 1 + REFUSABLE.index(kind), first, count, number)


def count_calls(words: Sequence[object], folder: Path, kind: str) -> int:
    """The number of calls of ``kind`` below ``folder`` that a command makes."""
    with tempfile.NamedTemporaryFile() as counted:

        def prepare() -> None:
            refuse(folder, kind, 0, 0, 0)()
            end = os._exit

            def tell_and_end(code: int) -> NoReturn:
                Path(counted.name).write_text(str(ctypes.CDLL(None).refuse_calls()))
                end(code)

            os._exit = tell_and_end

        ended = run(words, prepare=prepare)
        assert ended.code == 0, (words, ended)
        return int(Path(counted.name).read_text())


def small_files(size: int) -> Callable[[], None]:
    """Limit files of the child to ``size`` bytes, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def little_memory(size: int) -> Callable[[], None]:
    """Limit the child to ``size`` bytes of addresses more than it has."""

    def prepare() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return prepare


def few_files(count: int) -> Callable[[], None]:
    """Limit the child to ``count`` open files."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
