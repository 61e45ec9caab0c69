"""The words before the words of ``spdf`` in a command that runs with this Python."""

from __future__ import annotations

import re
import sys

SPDF = (sys.executable, "-m", "spdf_dist")
SAFE_PATH = re.compile(r"[A-Za-z0-9_./+=,:@-]+")
"""Paths that need no quotes in a shell."""
