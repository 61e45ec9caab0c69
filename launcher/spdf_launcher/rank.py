"""One rank of a job under srun, deepspeed or mpirun: ``python -m spdf_launcher.rank pretrain CONFIG ...``.

Launchers replace exit codes by their own, and end the other ranks at the first nonzero code. Rank 0 therefore writes
the trainer's exit code to the file of SPDF_EXIT_FILE or --exit-file=FILE. A stop by a signal ends with 0. The other
ranks delay exit codes 2 and 3, so that rank 0 can report the error.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from spdf_dist.base.rank_variables import is_rank_zero
from spdf_dist.cli.main import main
from spdf_dist.config.errors import EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_STOPPED
from spdf_launcher.folder import write_text

RANK_MODULE = "spdf_launcher.rank"
EXIT_FILE = "SPDF_EXIT_FILE"
EXIT_OPTION = "--exit-file="
SPEAK_SECONDS = 5.0
PASS_ON_SECONDS = 1.0
"""Delay of rank 0 before a nonzero exit code. srun ends the step then and loses output that it has not forwarded."""


def run() -> int:
    """Run the trainer's command line in this rank and return this process's exit code."""
    named = [word.removeprefix(EXIT_OPTION) for word in sys.argv if word.startswith(EXIT_OPTION)]
    sys.argv = [word for word in sys.argv if not word.startswith(EXIT_OPTION)]
    exit_file = named[0] if named else os.environ.get(EXIT_FILE)
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if is_rank_zero():
        if exit_file is not None:
            write_text(Path(exit_file), f"{code}\n")
            if code not in (0, EXIT_STOPPED):
                sys.stderr.flush()
                time.sleep(PASS_ON_SECONDS)
    elif code in (EXIT_BAD_INPUT, EXIT_NON_FINITE):
        time.sleep(SPEAK_SECONDS)
    return 0 if code == EXIT_STOPPED else code


if __name__ == "__main__":
    sys.exit(run())
