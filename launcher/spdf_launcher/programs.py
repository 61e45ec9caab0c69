"""What stands before the words of ``spdf`` in a command that this Python runs."""

from __future__ import annotations

import re
import sys

SPDF = (sys.executable, "-m", "spdf_dist")
SAFE_PATH = re.compile(r"[A-Za-z0-9_./+=,:@-]+")
"""Paths that stay one word in a shell."""
