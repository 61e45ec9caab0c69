"""Finds the sub-commands, parses, runs one, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.metadata
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from spdf_dist import __version__
from spdf_dist.base.claims import claimed
from spdf_dist.base.rank_variables import SINGLE_PROCESS, discover, is_rank_zero
from spdf_dist.base.signals import STOP_SIGNALS, guarded, handled
from spdf_dist.cli.memory import keep_freed_memory
from spdf_dist.cli.refused_variables import check_variables, refused_variable
from spdf_dist.cli.scarcity import scarcity
from spdf_dist.cli.surroundings import (
    STANDARD_OUTPUT,
    has_current_folder,
    import_nothing_from_here,
    keep_own_permissions,
    make_no_warning_an_error,
    open_standard_streams,
)
from spdf_dist.config.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_STOPPED, SpdfError, UserError, exit_code_of
from spdf_dist.config.paths import with_home
from spdf_dist.config.suggest import nearest
from spdf_dist.parallel.ranks import first_failed_rank, follow_parent, is_peer_failure, should_report_error

GROUP = "spdf.commands"
TRAINING = ("pretrain", "finetune")
"""Commands that continue when they are started again after a stop."""
PROMPT = "--prompt"
"""The option whose value is a text."""
LONGEST_LINE = 4000
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

DESCRIPTION = """Sparse pre-training and dense fine-tuning of GPT models (SPDF).

Pre-train a GPT with a static random mask on its linear layers, drop the mask, and
fine-tune the model dense. `spdf run demo --dir runs/demo --on local` runs the whole
method. `spdf pretrain CONFIG --dry-run` prints what a config does."""


class Parser(argparse.ArgumentParser):
    """argparse, with usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {one_line(message)} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT)


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """The sub-commands of every installed distribution, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def build_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one sub-command."""
    parser = Parser(
        prog=f"spdf {name}",
        description=(module.__doc__ or module.HELP).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    return parser


def expand_home(words: Sequence[str]) -> list[str]:
    """Put the home folder for a leading ``~`` of a word or an option's value, as in ``--out=~/x`` or in quotes.

    A shell expands neither. The config expands overrides, and a prompt is a text.
    """
    expanded = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if word.startswith("~") and before != PROMPT:
            word = with_home(word)
        elif option.startswith("--") and option != PROMPT and value.startswith("~"):
            word = f"{option}{equals}{with_home(value)}"
        expanded.append(word)
    return expanded


def overview(points: dict[str, importlib.metadata.EntryPoint]) -> str:
    """The text of ``spdf --help``."""
    width = max(len(name) for name in points)
    lines = [f"  {name:<{width}}  {point.load().HELP}" for name, point in sorted(points.items())]
    return (
        f"usage: spdf COMMAND ...\n\n{DESCRIPTION}\n\ncommands:\n"
        + "\n".join(lines)
        + (
            "\n\n`spdf COMMAND --help` explains a command. Exit codes: 0 done, 1 failed, 2 bad input,"
            "\n3 non-finite loss, 75 stopped after saving (the same command continues), 130 stopped."
        )
    )


def one_line(text: str) -> str:
    """``text`` with line ends and control characters as escapes, and not too long: a name or a key may hold any."""
    line = CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


def report(name: str, reason: str, code: int) -> int:
    """Print why the command ``name`` ends, unless another rank of the job does; returns ``code``."""
    line = one_line(f"spdf {name}: {reason}")
    if is_alone(name) or should_report_error(line, code):
        print(line, file=sys.stderr)
    return code


def is_alone(name: str) -> bool:
    """Whether the command is not part of a job although RANK is set: containers of a job set it for every process."""
    try:
        ranks = discover() or SINGLE_PROCESS
    except UserError:
        return True
    return ranks.world_size == 1 or (name not in TRAINING and ranks.source == "the launcher")


@contextlib.contextmanager
def stoppable(name: str) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and Ctrl-C end training commands with the code of a stop until training handles them itself.

    The imports alone take seconds. Nothing is to be saved then, and an exception could get lost in an import.
    """
    if name not in TRAINING:
        with interruptible():
            yield
        return
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        line = f"spdf {name}: stopped before the first step; run it again"
        if os.getpid() == owner and should_report_error(line, EXIT_STOPPED):
            os.write(2, f"{line}\n".encode())
        os._exit(EXIT_STOPPED)

    with handled(STOP_SIGNALS, stop), guarded(start_up=True):
        follow_parent()
        yield


class Interrupted(KeyboardInterrupt):
    """SIGTERM, SIGUSR1 or Ctrl-C; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The first SIGTERM, SIGUSR1 or Ctrl-C raises Interrupted, so that nothing is left; a second ends at once."""
    owner = os.getpid()
    heard: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner or heard:
            os._exit(EXIT_INTERRUPTED)
        heard.append(number)
        raise Interrupted(number)

    with handled(STOP_SIGNALS, interrupt), guarded(start_up=False):
        try:
            yield
        except BaseException as error:
            if heard:  # an interrupted library may raise any exception
                raise Interrupted(heard[0]) from error
            raise


def claim(name: str, args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """The claim on what the command makes: its ``out``. Ranks of a pack claim it together."""
    out = getattr(args, "out", None)
    if not out or getattr(args, "claims_out", False) or not (is_alone(name) or is_rank_zero()):
        return contextlib.nullcontext()
    return claimed(Path(out))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``spdf`` with ``argv`` (default: the process's own) and return its exit code."""
    if argv is None:
        open_standard_streams()
        import_nothing_from_here()
        keep_own_permissions()
        make_no_warning_an_error()
        if not has_current_folder():
            print("spdf: the current folder no longer exists: change to another one", file=sys.stderr)
            return EXIT_BAD_INPUT
    code = 0
    try:
        try:
            code = run_command(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        drop_output()
    except OSError as error:
        if error.filename not in (None, STANDARD_OUTPUT):
            raise
        drop_output()
        print(f"spdf: standard output cannot be written: {error.strerror}", file=sys.stderr)
        code = code or 1
    return code


def drop_output() -> None:
    """Send the rest of standard output nowhere, also what Python flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(argv: Sequence[str]) -> int:
    """Find the sub-command, run it, and turn its errors into a line and an exit code."""
    # Launchers put --local_rank=N before or among the arguments; ranks come from the environment.
    arguments = [a for a in argv if not a.startswith("--local_rank=")]
    if "--local_rank" in arguments:
        at = arguments.index("--local_rank")
        del arguments[at : at + 2]
    points = entry_points()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(points))
        return 0 if arguments else EXIT_BAD_INPUT
    if arguments[0] == "--version":
        print(f"spdf {__version__}")
        return 0
    name, *rest = expand_home(arguments)
    if name not in points:
        print(one_line(f"spdf: error: unknown command '{name}'{nearest(name, points)}"), file=sys.stderr)
        return EXIT_BAD_INPUT
    module = points[name].load()
    parser = build_parser(name, module)
    # Overrides may also follow options, which argparse does not support together with sub-commands.
    args = parser.parse_args(rest) if parser._subparsers else parser.parse_intermixed_args(rest)
    keep_freed_memory()
    try:
        check_variables()
        with stoppable(name), claim(name, args):
            return int(module.run(args) or 0)
    except SpdfError as error:
        return report(name, str(error), exit_code_of(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno is None or error.filename == STANDARD_OUTPUT:
            raise
        named = isinstance(error.filename, str | bytes)
        # ENOENT without a name is that of `tempfile`, whose message names the folders that it tried.
        guess = None if error.errno == errno.ENOENT else getattr(args, "out", None)
        place = os.fsdecode(error.filename) if named else guess
        where = f"{place}: " if place else ""
        return report(name, scarcity(error) or f"{where}{error.strerror}", exit_code_of(error))
    except Interrupted as stop:
        return report(name, f"stopped by {signal.Signals(stop.number).name}", EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return report(name, "interrupted", EXIT_STOPPED if name in TRAINING else EXIT_INTERRUPTED)
    except Exception as error:
        lacking = scarcity(error)
        if lacking is not None:
            return report(name, lacking, 1)
        refused = refused_variable(error)
        if refused is not None:
            return report(name, refused, EXIT_BAD_INPUT)
        if not isinstance(error, RuntimeError) or not is_peer_failure(error):
            raise
        return report_lost_peer(f"spdf {name}: another rank is gone: {str(error).splitlines()[0]}")


def report_lost_peer(line: str) -> int:
    """The exit code of a rank that lost another one. That rank, or the parent of the ranks, reports the reason."""
    ranks = discover() or SINGLE_PROCESS
    if ranks.rendezvous_file is not None:
        time.sleep(0.5)  # for the process that started the ranks to see first which one ended first
        return 1
    first, code = first_failed_rank(ranks.rank, 1)
    if first == ranks.rank:
        print(line, file=sys.stderr)
    return code
