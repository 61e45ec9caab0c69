"""Texts and files for the data tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while"),
    *("seven", "wizards", "brew", "potions", "in", "März", "at", "3:15"),
)


def story(number: int, words: int = 40) -> str:
    """A different text for each number, with newlines, runs of spaces and non-ASCII characters."""
    chosen = [WORDS[(number * 7 + at * (1 + number % 5)) % len(WORDS)] for at in range(words)]
    return f"Story {number}\n\n  " + " ".join(chosen) + "\n\tEnd — naïve ☕.\n"


def write_jsonl(path: Path, texts: list[str], set_name: str | None = None) -> Path:
    """JSON lines in the Pile's format."""
    meta = {"meta": {"pile_set_name": set_name}} if set_name else {}
    lines = [json.dumps({"text": text, **meta}) for text in texts]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def load_index(folder: Path) -> dict[str, Any]:
    """The index of a packed folder."""
    index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return index
