"""SHA-256 of files, and JSON files that contain the SHA-256 of their own bytes, so that damage is detected."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import names_file

ZEROS = "0" * 64
BEGIN = re.compile(rb'\{\n "digest": "([0-9a-f]{64})"')


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file. Raises OSError."""
    with names_file(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(tree: dict[str, Any]) -> bytes:
    """``tree`` as indented JSON. Its first key, ``digest``, is the SHA-256 of the text with 64 zeros as the digest.

    Surrogates, as in file names that are not UTF-8, are written as JSON escapes. Raises ValueError for numbers that are
    not finite.
    """
    text = json.dumps({"digest": ZEROS, **tree}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    content = text.encode("utf-8", errors="backslashreplace")
    return content.replace(ZEROS.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def check_seal(content: bytes, tree: dict[str, Any], first: str) -> None:
    """Raise ValueError unless ``content``, whose JSON value is ``tree``, has the digest that it names.

    Older files, which have no digest and begin with the key ``first``, are accepted.
    """
    match = BEGIN.match(content)
    if match is None:
        if "digest" in tree or next(iter(tree), first) != first:
            raise ValueError("its digest is not at its beginning")
        return
    zeroed = content[: match.start(1)] + ZEROS.encode() + content[match.end(1) :]
    if hashlib.sha256(zeroed).hexdigest().encode() != match[1]:
        raise ValueError("its content does not match its digest")
