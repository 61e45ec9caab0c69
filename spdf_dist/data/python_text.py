"""Pre-training text from any Python installation: its standard library and its help topics.

The text is small and not prose, but it is enough for a demonstration without a download. The same Python version gives
the same text in the same order.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import math
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from spdf_dist.config.errors import UserError
from spdf_dist.data.placing import placed

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
"""Skipped folders: tests, packages outside the standard library, and tables of characters."""

VALIDATION_SHARE = 50
"""One of this many modules and topics goes to validation."""


def python_documents() -> Iterator[dict[str, Any]]:
    """Documents ``{"text", "meta": {"pile_set_name", "file"}}``: sources, docstrings and help topics.

    They are ordered by a hash of their names, so that any first part is a random sample.
    """
    library = Path(sysconfig.get_path("stdlib"))
    topics = {f"topic:{name}": text for name, text in help_topics().items()}
    for name in sorted([*modules(library), *topics], key=name_hash):
        if name in topics:
            yield document(topics[name], "PythonTopics", name)
            continue
        source = read_source(library / name)
        if source is None:
            continue
        yield document(source, "PythonSource", name)
        if docstrings := "\n\n".join(docstrings_of(source)):
            yield document(docstrings, "PythonDocstrings", name)


def modules(library: Path) -> Iterator[str]:
    """The modules of the standard library, as paths inside it."""
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):  # these depend on the machine
                yield (Path(folder) / name).relative_to(library).as_posix()


def document(text: str, set_name: str, name: str) -> dict[str, Any]:
    """A document in the format of the Pile."""
    return {"text": text, "meta": {"pile_set_name": set_name, "file": name}}


def name_hash(name: str) -> int:
    """A 64-bit hash that determines order and split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def help_topics() -> dict[str, str]:
    """The texts of ``help("topics")`` by topic; empty where the installation has none."""
    try:
        from pydoc_data import topics
    except ImportError:
        return {}
    return dict(topics.topics)


def read_source(path: Path) -> str | None:
    """The text of a module, or None when it is empty or cannot be decoded."""
    content = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding).replace("\r\n", "\n") or None
    except (SyntaxError, UnicodeDecodeError):
        return None


def docstrings_of(source: str) -> Iterator[str]:
    """The docstrings of a module and of its classes and functions, each after the name."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                name = getattr(node, "name", "")
                yield f"{name}: {text}" if name else text


def write_python_text(
    out: str, validation: str | None = None, max_mb: float | None = None
) -> list[tuple[Path, int, int]]:
    """Write the documents as JSON lines.

    Args:
        out: a ``.jsonl`` or ``.jsonl.zst`` file.
        validation: one of fifty modules and topics goes into this file instead.
        max_mb: stop after this many MB (10^6 bytes of UTF-8) of text.

    Returns:
        For each file: its path, number of documents, and bytes of text.

    Raises:
        UserError: a name has another suffix, a file exists with other content, or ``max_mb`` is not positive and
            finite.
    """
    if max_mb is not None and not 0 < max_mb < math.inf:
        raise UserError(f"--max-mb: must be positive and finite, got {max_mb}")
    targets = [Path(name) for name in (out, validation) if name is not None]
    for target in targets:
        if not target.name.endswith((".jsonl", ".jsonl.zst")):
            raise UserError(f"{target}: the name must end in .jsonl or .jsonl.zst")
    if len(set(targets)) < len(targets):
        raise UserError(f"--out and --validation are both {out}")
    counts, sizes = [0] * len(targets), [0] * len(targets)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(placed_text(target)) for target in targets]
        for entry in python_documents():
            chosen = 1 if validation is not None and name_hash(entry["meta"]["file"]) % VALIDATION_SHARE == 0 else 0
            files[chosen].write(json.dumps(entry, ensure_ascii=False) + "\n")
            counts[chosen] += 1
            sizes[chosen] += len(entry["text"].encode())
            if max_mb is not None and sum(sizes) >= max_mb * 1e6:
                break
    return list(zip(targets, counts, sizes, strict=True))


@contextlib.contextmanager
def placed_text(target: Path) -> Iterator[IO[str]]:
    """``placed`` for text, compressed where the name of ``target`` ends in .zst."""
    if not target.name.endswith(".zst"):
        with placed(target, newline="") as file:
            yield file
        return
    import zstandard

    with placed(target, "wb") as file:
        compressed = zstandard.ZstdCompressor().stream_writer(file, closefd=False)
        with io.TextIOWrapper(compressed, encoding="utf-8", newline="") as text:
            yield text
