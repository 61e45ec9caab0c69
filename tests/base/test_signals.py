"""Commands handle signals, and restore the previous handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from spdf_dist.base.signals import STOP_SIGNALS, ReceivedSignals, StopRequest, stop_on_signal
from spdf_dist.config.errors import Stopped


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_request_remembers_and_the_old_handler_comes_back(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal\nfrom spdf_dist.base.signals import StopRequest\n"
        "with StopRequest() as stop:\n    os.kill(os.getpid(), 15)\n    assert stop.requested\n"
        "    os.kill(os.getpid(), 15)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 128 + signal.SIGTERM


def test_a_command_with_nothing_to_save_is_stopped() -> None:
    with pytest.raises(Stopped, match="SIGUSR1"), stop_on_signal():
        os.kill(os.getpid(), signal.SIGUSR1)


def test_a_terminal_that_is_closed_is_a_stop_except_under_nohup() -> None:
    with pytest.raises(Stopped, match="SIGHUP"), stop_on_signal():
        os.kill(os.getpid(), signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_received_signals_are_listed_and_end_a_pause() -> None:
    with ReceivedSignals() as received:
        os.kill(os.getpid(), signal.SIGUSR1)
        received.pause(60)
    assert received.got == [signal.SIGUSR1]


NATIVE = """
import sys, time
import torch
from spdf_dist.base.signals import StopRequest
with StopRequest():
    x = torch.randn(2500, 2500)
    print("ready", flush=True)
    torch.linalg.svd(x)  # tens of seconds in native code, where no handler of Python's runs
"""


def test_signals_are_answered_while_native_code_runs() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", NATIVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert b"a second signal ends at once" in process.stderr.readline()
    assert time.monotonic() - began < 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5
    process.communicate()


START_UP = """
import sys, time, torch
from spdf_dist.base import signals
signals.START_UP_SECONDS = 0.5
with signals.StopRequest() as stop:
    if sys.argv[1] == "begun":
        stop.begin()
    print("ready", flush=True)
    torch.linalg.svd(torch.randn(int(sys.argv[2]), int(sys.argv[2])))
    time.sleep(1.0)
print(stop.requested)
"""


@pytest.mark.parametrize(("words", "code"), [(("starting", "2500"), 75), (("begun", "10"), 0)])
def test_a_signal_ends_a_start_up_that_waits_in_native_code(words: tuple[str, str], code: int) -> None:
    command = [sys.executable, "-c", START_UP, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert (b"stopped during start-up" in errors) is (code == 75) and (out == b"True\n") is (code == 0)


def test_a_forked_child_s_signals_are_its_own() -> None:
    out, into = os.pipe()
    with StopRequest() as stop:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            os.write(into, b"x")
            while True:
                time.sleep(30)
        assert os.read(out, 1) == b"x"
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGUSR1)
        os.waitpid(child, 0)
        time.sleep(0.1)
        assert not stop.requested


HOLDING = """
import itertools, sys
from spdf_dist.base import signals
signals.START_UP_SECONDS, signals.GUARD_SECONDS = 0.5, 0.5
with signals.guarded(start_up=sys.argv[1] == "starting"), signals.StopRequest() as stop:
    if sys.argv[1] == "begun":
        stop.begin()
    print("ready", flush=True)
    all(itertools.repeat(True))  # holds the interpreter lock for ever, so that neither handlers nor threads run
"""


@pytest.mark.parametrize(("stage", "signals"), [("starting", 1), ("starting", 2), ("begun", 2), ("other", 2)])
def test_a_command_that_holds_the_interpreter_lock_is_ended(stage: str, signals: int) -> None:
    command = [sys.executable, "-c", HOLDING, stage]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for _ in range(signals):
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.poll() is None
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert (b"stopped during start-up" in errors) is (signals == 1)


def test_a_guard_waits_after_the_first_signal_and_ends_with_its_command() -> None:
    code = (
        HOLDING.replace("all(itertools.repeat(True))", "any(itertools.repeat(False, 10**8))") + "print(stop.requested)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, "begun"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    (guard,) = psutil.Process(process.pid).children()
    assert "signal_guard" in guard.cmdline()[3]
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"True\n")
    assert not guard.is_running()


def test_a_guard_does_not_outlive_a_killed_command() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDING, "begun"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    (guard,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    guard.wait(10)
