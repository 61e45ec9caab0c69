"""Finds the sub-commands, parses, runs one, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from spdf_dist import __version__
from spdf_dist.cli.memory import keep_freed_memory
from spdf_dist.config.errors import EXIT_BAD_INPUT, EXIT_STOPPED, SpdfError
from spdf_dist.config.suggest import nearest

GROUP = "spdf.commands"

DESCRIPTION = """Sparse pre-training and dense fine-tuning of GPT models (SPDF).

Pre-train a GPT with a static random mask over its linear layers, drop the mask,
fine-tune dense. Start with `spdf run demo --dir runs/demo --on local`, or with
`spdf pretrain CONFIG --dry-run` to see what a config would do."""


class Parser(argparse.ArgumentParser):
    """argparse, with usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message} (see `{self.prog} --help`)", file=sys.stderr)
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


def overview(points: dict[str, importlib.metadata.EntryPoint]) -> str:
    """The text of ``spdf --help``."""
    width = max(len(name) for name in points)
    lines = [f"  {name:<{width}}  {point.load().HELP}" for name, point in sorted(points.items())]
    return (
        f"usage: spdf COMMAND ...\n\n{DESCRIPTION}\n\ncommands:\n"
        + "\n".join(lines)
        + (
            "\n\n`spdf COMMAND --help` explains one. Exit codes: 0 done, 2 bad input, 3 non-finite loss,"
            "\n75 stopped by a signal after saving (start it again to go on)."
        )
    )


def is_rank_zero() -> bool:
    """Whether this process speaks for the job: rank 0 of whatever launcher started it, or the only process."""
    env = os.environ
    rank = env.get("RANK") or env.get("OMPI_COMM_WORLD_RANK")
    if rank is None and "SLURM_STEP_ID" in env:
        rank = env.get("SLURM_PROCID")
    return rank in (None, "", "0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``spdf`` with ``argv`` (default: the process's own) and return its exit code."""
    # Launchers put --local_rank=N before or among the arguments; ranks come from the environment.
    arguments = [a for a in (sys.argv[1:] if argv is None else argv) if not a.startswith("--local_rank=")]
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
    name, *rest = arguments
    if name not in points:
        print(f"spdf: error: unknown command '{name}'{nearest(name, points)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    module = points[name].load()
    parser = build_parser(name, module)
    # Overrides may stand behind options too; argparse cannot do that where there are sub-commands.
    args = parser.parse_args(rest) if parser._subparsers else parser.parse_intermixed_args(rest)
    keep_freed_memory()
    try:
        return int(module.run(args) or 0)
    except SpdfError as error:
        if is_rank_zero():
            print(f"spdf {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"spdf {name}: interrupted", file=sys.stderr)
        return EXIT_STOPPED if name in ("pretrain", "finetune") else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
