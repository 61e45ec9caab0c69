"""Inputs of ``spdf data pack`` that are not files: ``http(s)://`` URLs, and ``pipe:`` commands that print a shard.

Each is copied to a temporary file before it is read, and deleted afterwards. Packing needs the whole content twice: for
its digest and for its text. A copy that ended early is an error before any of it is packed. webdataset's ``gopen`` is
not used: it gives ``pipe:`` commands to a shell, and it reads a stream whose command may fail after half of the shard.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.data.fetch import download

HTTP, PIPE = ("http://", "https://"), "pipe:"
TRIES = 3
PAUSE_SECONDS = 2.0
"""Before the second try of a download, and twice as much before the third."""


@dataclass(frozen=True)
class RemoteInput:
    """A URL or a ``pipe:`` command."""

    source: str
    name: str
    """In the index and in messages. It has no query and no arguments, because these may hold secrets."""

    def copy_to(self, folder: Path) -> Path:
        """Copy the content into ``folder``, which must exist. Raises UserError if it cannot be copied completely."""
        target = folder / self.name
        if self.source.startswith(PIPE):
            run_command(self.source, target)
        else:
            download_whole(self.source, target)
        return target


Input = Path | RemoteInput


def is_remote(given: str) -> bool:
    """Whether an input is a URL or a command."""
    return given.startswith((*HTTP, PIPE))


def remote_input(given: str, suffixes: tuple[str, ...]) -> RemoteInput:
    """The checked input. Raises UserError for a command without a program, and for a URL of an unknown kind of file."""
    if given.startswith(PIPE):
        words = command(given)
        shard = next((Path(word).name for word in reversed(words) if word.endswith(".tar")), "shard.tar")
        return RemoteInput(given, f"{PIPE}{Path(words[0]).name}-{urllib.parse.unquote(shard)}")
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(given).path)).name
    if not name.endswith(suffixes):
        raise UserError(f"--input {given}: unknown kind of file; known: {', '.join(suffixes)}")
    return RemoteInput(given, name)


def command(given: str) -> list[str]:
    """The words of a ``pipe:`` command. They are split like a shell does, but no shell runs them.

    Raises UserError if there is no program, or where only a shell would understand the command.
    """
    try:
        words = shlex.split(given.removeprefix(PIPE))
    except ValueError as error:
        raise UserError(f"--input {given}: {error}") from None
    if not words:
        raise UserError(f"--input {given}: names no program")
    for word in words:
        if word in ("|", "<", ">", ">>", "&&", "||", ";", "&"):
            raise UserError(f"--input {given}: no shell runs the command, so put {word!r} into a script and name that")
    return words


def run_command(given: str, target: Path) -> None:
    """Write what a command prints to ``target``. Raises UserError if the command cannot be run or fails."""
    words = command(given)
    try:
        with target.open("wb") as file:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, check=False)
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"--input pipe: cannot run {words[0]}: {error.strerror}") from None
    if done.returncode:
        raise UserError(f"--input pipe: {words[0]} failed with exit code {done.returncode}; nothing was packed")


def download_whole(url: str, target: Path) -> None:
    """Download ``url`` to ``target``; a download that breaks off continues. Raises UserError after ``TRIES`` tries."""
    for attempt in range(TRIES):
        try:
            return download(url, target)
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if final or attempt == TRIES - 1:
                reason = getattr(error, "reason", None) or error
                where = url.partition("?")[0]
                raise UserError(f"--input {where} cannot be downloaded ({reason}); nothing was packed") from None
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return None


@contextlib.contextmanager
def local_copy(given: Input, folder: Path) -> Iterator[Path]:
    """A context with the path of an input. That of a remote one is in ``folder``, which exists only inside."""
    if isinstance(given, Path):
        yield given
        return
    folder.mkdir()
    try:
        yield given.copy_to(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def known_bytes(given: Input) -> int | None:
    """The size of a local file; None for a remote input."""
    return given.stat().st_size if isinstance(given, Path) else None
