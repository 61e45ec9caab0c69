"""The loopback interface, over which the ranks of one machine talk. It imports no torch."""

from __future__ import annotations

import errno
import socket

from spdf_dist.config.errors import SpdfError, UserError

LOOPBACK = "lo"
ADDRESS = "127.0.0.1"
SECONDS = 5.0
"""Longest wait for a connection of this process to itself."""
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def check_loopback() -> None:
    """Raise UserError unless this process can connect to itself over the loopback interface.

    Raises SpdfError if the machine lacks a socket or memory for it.
    """
    try:
        with socket.socket() as server:
            server.bind((ADDRESS, 0))
            server.listen(1)
            socket.create_connection(server.getsockname(), timeout=SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in SCARCE:
            raise SpdfError(f"a socket cannot be opened: {reason}") from None
        raise UserError(
            f"the loopback address {ADDRESS}, over which the processes of one machine talk, cannot be used ({reason}): "
            f"bring the interface {LOOPBACK} up (`ip link set {LOOPBACK} up`), with IPv4"
        ) from None
