"""One rank of a job under srun, deepspeed or mpirun: ``python -m spdf_launcher.rank pretrain CONFIG ...``.

Launchers turn exit codes into their own, and end the other ranks at the first code that is not 0. So rank 0 writes the
trainer's exit code into the file that SPDF_EXIT_FILE or --exit-file=FILE names, a stop by a signal ends with 0, and
other ranks that refuse their input wait for rank 0 to say why.
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
"""srun ends the step at the first code that is not 0, and loses what it has not passed on by then: the reason."""


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
