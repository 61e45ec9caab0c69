"""Hypotheses and references as the official scripts take them, written aside and renamed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from spdf_dist.data.tasks.example import Example, Task, references


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write ``lines`` as UTF-8, each ended by a newline; ``path`` is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_references(task: Task, examples: Sequence[Example], path: Path) -> list[Path]:
    """Write the references of ``examples``, one group an input, and return the files.

    E2E and Curation: the file ``path``, a blank line after each input. WebNLG and DART: ``path`` is a folder with
    ``reference0`` to ``reference5``.
    """
    groups = [[task.finish(text) for text in texts] for texts in references(examples)]
    if task.reference_files == 0:
        write_lines(path, (line for texts in groups for line in (*texts, "")))
        return [path]
    files = [path / f"reference{number}" for number in range(task.reference_files)]
    for number, file in enumerate(files):
        write_lines(file, (texts[number] if number < len(texts) else texts[0] for texts in groups))
    return files
