"""Runs `spdf` commands in forked children of a process that has imported everything: a third of a second a start."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DISK_CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "link", "rmdir")
"""Calls of the file system at which a child can be killed: everything before one is on the disk, it is not."""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    """Exit code; -n when signal n ended it."""
    said: str
    """Standard error."""
    seconds: float


def preload() -> None:
    """Import what the commands use, so that children need not."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import deepspeed  # noqa: F401
    import torch
    import torch.utils.tensorboard

    import spdf_dist.checkpoint.densify
    import spdf_dist.checkpoint.hf_export
    import spdf_dist.cli.main
    import spdf_dist.data.pack
    import spdf_dist.data.tokenizer_training
    import spdf_dist.evaluation.checkpoint
    import spdf_dist.training.finetune
    import spdf_dist.training.pretrain  # noqa: F401

    torch.set_num_threads(1)


@dataclass
class Child:
    """A running command, and the pipe that its standard error goes to: a file may find no room."""

    pid: int
    pipe: int
    began: float

    def said(self) -> str:
        """What it wrote; call it once, after its end."""
        with os.fdopen(self.pipe, "rb", closefd=True) as pipe:
            return (pipe.read() or b"").decode(errors="replace")


def start(words: Sequence[object], prepare: Callable[[], None] | None = None) -> Child:
    """Fork a child that runs ``spdf WORDS``."""
    sys.stdout.flush()
    sys.stderr.flush()
    out, into = os.pipe()
    os.set_blocking(out, False)
    os.set_blocking(into, False)  # a child that says more than a pipe holds does not wait for us
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(into)
        return Child(pid, out, time.monotonic())
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the command begins
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
    """Wait for a child; one that takes longer than ``limit`` seconds is killed, and its code is -SIGALRM."""
    while True:
        ended, status = os.waitpid(child.pid, os.WNOHANG)
        seconds = time.monotonic() - child.began
        if ended:
            return Ended(os.waitstatus_to_exitcode(status), child.said(), seconds)
        if seconds > limit:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            return Ended(-signal.SIGALRM, child.said(), seconds)
        time.sleep(0.002)


def run(
    words: Sequence[object],
    *,
    send: int | None = None,
    after: float = 0.0,
    prepare: Callable[[], None] | None = None,
) -> Ended:
    """Run a command to its end; ``send`` it a signal ``after`` seconds, unless it has ended by then."""
    child = start(words, prepare)
    if send is not None:
        time.sleep(after)
        os.kill(child.pid, send)  # a child that has ended is still there until it is waited for
    return wait(child)


def kill_at(number: int) -> Callable[[], None]:
    """Let the child die by SIGKILL at its ``number``-th call of ``DISK_CALLS``, counted from 1, before it is made."""

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


def small_files(size: int) -> Callable[[], None]:
    """Let no file of the child grow beyond ``size`` bytes: a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def few_files(count: int) -> Callable[[], None]:
    """Let the child have at most ``count`` open files."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
