"""``--on local``: on this machine, one job at a time or several. Training starts its own ranks."""

from __future__ import annotations

import argparse

from spdf_dist.config.errors import UserError
from spdf_launcher.executors.base import Executor


class Local(Executor):
    """This machine."""

    name = "local"
    help = "on this machine; Ctrl-C saves and stops, and the same command continues"
    options = ("--jobs",)

    def __init__(self, options: argparse.Namespace | None = None) -> None:
        self.at_once = options.jobs if options is not None and options.jobs is not None else 1
        if self.at_once < 1:
            raise UserError(f"--jobs {self.at_once}: at least one job must run at a time")

    @classmethod
    def add_options(cls, parser: argparse._ArgumentGroup) -> None:
        parser.add_argument(
            "--jobs", type=int, metavar="N", help="number of jobs that run at a time; they share the cores (default 1)"
        )
