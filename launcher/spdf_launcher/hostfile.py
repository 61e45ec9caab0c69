"""Reads deepspeed's hostfile, one line `HOST slots=N` per node, before deepspeed does.

deepspeed ends with a traceback for a file that is wrong.
"""

from __future__ import annotations

import re
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_launcher.plan import Job

LARGEST_FILE = 16 << 20
LINE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.:@-]*)\s+slots=([1-9][0-9]{0,5})")


def read_hostfile(path: Path) -> dict[str, tuple[int, int]]:
    """Slots and line number of each host, in the file's order. Raises UserError for a file that is not a hostfile."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"--hostfile {path}: {error.strerror}") from None
    if len(text) > LARGEST_FILE:
        raise UserError(f"--hostfile {path}: more than {LARGEST_FILE >> 20} MiB; is it the right file?")
    hosts: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(f"--hostfile {path}: line {number}: expected `HOST slots=N`, got {line[:60]!r}")
        host, slots = match.group(1), int(match.group(2))
        if host in hosts:
            raise UserError(f"--hostfile {path}: line {number}: {host} is already in line {hosts[host][1]}")
        hosts[host] = slots, number
    if not hosts:
        raise UserError(f"--hostfile {path}: names no host: write one line `HOST slots=N` per node")
    return hosts


def check_room(path: Path, hosts: dict[str, tuple[int, int]], job: Job) -> None:
    """Check that the file has enough hosts and slots for a job; deepspeed uses the first hosts of the file.

    Raises:
        UserError: too few hosts, or fewer slots than ranks per node on one of the hosts.
    """
    nodes, ranks = job.resources.nodes, job.resources.ranks_per_node
    if len(hosts) < nodes:
        raise UserError(f"--hostfile {path}: names {len(hosts)} of the {nodes} nodes of jobs.{job.name}")
    for host, (slots, number) in list(hosts.items())[:nodes]:
        if slots < ranks:
            raise UserError(
                f"--hostfile {path}: line {number}: {host} has slots={slots}, but "
                f"jobs.{job.name} has {ranks} ranks per node"
            )
