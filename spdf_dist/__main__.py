"""The ``spdf`` command, and ``python -m spdf_dist`` for launchers that start modules (torchrun, deepspeed, srun)."""

import signal
import sys

# `-m` puts the current folder first on the path, so that a user's tokenize.py would replace the standard module.
if __name__ == "__main__" and not sys.flags.safe_path and not __file__.startswith(sys.path[0]):
    del sys.path[0]


def run() -> int:
    """Run the command line of this process and return the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for Ctrl-C during imports
    from spdf_dist.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
