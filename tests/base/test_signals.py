"""What commands do at a signal, and that earlier handlers come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

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


def test_received_signals_are_listed_and_end_a_pause() -> None:
    with ReceivedSignals() as received:
        os.kill(os.getpid(), signal.SIGUSR1)
        received.pause(60)
    assert received.got == [signal.SIGUSR1]
