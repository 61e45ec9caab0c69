"""Paths in configs and on the command line, which may start with ``~``."""

from __future__ import annotations

import os


def with_home(text: str) -> str:
    """``text`` with a leading ``~`` or ``~user`` replaced by the home folder; unchanged if there is no such user."""
    return os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises for an unknown user
