"""Writes hypotheses and references in the formats of the official scripts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from spdf_dist.base.atomic_files import atomic_file
from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks.example import Example, distinct_contexts, references
from spdf_dist.data.tasks.task import Task


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write ``lines`` as UTF-8, each with a newline. A file appears only when it is complete.

    A device or a pipe is opened for writing, and a link is followed, because a rename would replace them by a file.
    """
    if is_special(path):
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def is_special(path: Path) -> bool:
    """Whether ``path`` is a device, a pipe or similar, such as the target of /dev/stdout."""
    return path.exists() and not path.is_file() and not path.is_dir()


def reference_groups(task: Task, examples: Sequence[Example]) -> list[list[str]]:
    """The finished references of each input.

    Empty references are left out where a blank line separates the inputs. In N files they keep their lines.

    Raises:
        UserError: an input has no reference.
    """
    groups = []
    for context, targets in zip(distinct_contexts(examples), references(examples), strict=True):
        texts = [task.finish(text) for text in targets]
        filled = [text for text in texts if text.strip()]
        if not filled:
            raise UserError(f"the input '{context:.80}' has no reference text to write")
        groups.append(texts if task.reference_files else filled)
    return groups


def reference_paths(task: Task, path: Path) -> list[Path]:
    """The files that :func:`write_references` writes."""
    return [path / f"reference{number}" for number in range(task.reference_files)] or [path]


def check_place(path: Path) -> None:
    """Check that a file can be written at ``path``, as far as possible without writing.

    Raises:
        UserError: ``path`` is a folder, a device that is not writable, or a circle of links; or its parent is a file or
            is not writable.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file to write")
        if is_special(path):
            if not os.access(path, os.W_OK):
                raise UserError(f"{path} cannot be written: no permission")
            return
        above = next(parent for parent in path.resolve().parents if parent.exists())
    except OSError as error:  # a name that is too long
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    except RuntimeError as error:  # resolve() found a circle of links
        raise UserError(f"{path} cannot be written: its links lead in a circle") from error
    if not above.is_dir():
        raise UserError(f"{path} cannot be written: {above} is a file, not a folder")
    if not os.access(above, os.W_OK):
        raise UserError(f"{path} cannot be written: no permission to write in {above}")


def write_references(task: Task, examples: Sequence[Example], path: Path) -> list[Path]:
    """Write the references of ``examples``, one group per input, and return the files.

    E2E and Curation Corpus: ``path`` is a file with a blank line after each input. WebNLG and DART: ``path`` is a
    folder with ``reference0`` to ``reference5``.

    Raises:
        UserError: an input has no reference.
    """
    groups = reference_groups(task, examples)
    files = reference_paths(task, path)
    if task.reference_files == 0:
        write_lines(path, (line for texts in groups for line in (*texts, "")))
        return files
    for number, file in enumerate(files):
        write_lines(file, (texts[number] if number < len(texts) else texts[0] for texts in groups))
    return files
