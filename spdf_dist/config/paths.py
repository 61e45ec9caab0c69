"""Paths in configs and on the command line, which may start with ``~`` and name environment variables."""

from __future__ import annotations

import os
import re

from spdf_dist.config.errors import UserError

VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


def with_home(text: str) -> str:
    """``text`` with a leading ``~`` or ``~user`` replaced by the home folder; unchanged if there is no such user."""
    return os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises for an unknown user


def written_path(text: str, where: str) -> str:
    """The path that a config's value means, with the home folder and with the values of ``$NAME`` and ``${NAME}``.

    A folder or file with such a name is meant where it exists. A line end at the end, which YAML's block texts have, is
    no part of the path. Raises UserError, which begins with ``where``, for a variable that is not set: otherwise a
    folder called ``$NAME`` would be made.
    """
    path = with_home(text.rstrip("\n"))

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        end = path.find("/", found.end())
        if os.path.lexists(path if end < 0 else path[:end]):
            return found[0]
        if name not in os.environ:
            raise UserError(f"{where}: the environment variable {name} of '{text.strip():.80}' is not set")
        return os.environ[name]

    return VARIABLE.sub(value, path)
