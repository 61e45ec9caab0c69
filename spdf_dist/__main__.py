"""``python -m spdf_dist`` is the ``spdf`` command, for launchers that start modules (torchrun, deepspeed, srun)."""

import sys

from spdf_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
