"""Runs `spdf` commands in forks of one process that has no privileges over permissions, even where it is root.

Usage: python unprivileged.py FOLDER COMMANDS, where COMMANDS is a JSON list of argument lists. It prints a JSON list of
[exit code, standard error], and runs the command of index N in FOLDER/N.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

MODULES = (
    "spdf_dist.training.finetune",
    "spdf_dist.training.pretrain",
    "spdf_dist.checkpoint.densify",
    "spdf_dist.checkpoint.hf_import",
    "spdf_dist.checkpoint.hf_export",
    "spdf_dist.evaluation.generation",
    "spdf_dist.report.write",
    "spdf_launcher.commands.run",
)
"""Imports that take seconds, once instead of in each command."""
CAPABILITY_VERSION = 0x20080522


def drop_privileges() -> None:
    """Clear all capabilities of this process: root then needs permissions like any owner."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(ctypes.byref(header), ctypes.byref(nothing)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def run(folder: Path, arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard error of one command."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                os.chdir(folder)
                drop_privileges()
                from spdf_dist.cli.main import main

                code = main(arguments)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        return code, errors.read().decode()


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    root = Path(sys.argv[1])
    commands = json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps([run(root / str(number), arguments) for number, arguments in enumerate(commands)]))
