"""``python -m spdf_dist`` is the ``spdf`` command, for launchers that start modules (torchrun, deepspeed, srun)."""

import sys

# `-m` puts the current folder first, where a user's tokenize.py would replace the standard one.
if not sys.flags.safe_path and sys.path and not __file__.startswith(sys.path[0]):
    del sys.path[0]

from spdf_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
