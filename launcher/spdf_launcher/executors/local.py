"""``--on local``: one job after the other on this machine. Training starts its own ranks."""

from __future__ import annotations

from spdf_launcher.executors.base import Executor


class Local(Executor):
    """This machine."""

    name = "local"
    help = "here, one job after the other; Ctrl-C saves and stops, running again goes on"
