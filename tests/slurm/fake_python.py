"""Runs the stand-in trainer as `fake_python -m spdf_dist ...` and `fake_python -m spdf_launcher.rank ...`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "launcher"))
import fake_spdf


def fake_main() -> int:
    """The trainer's command line in one rank. Only rank 0 does something."""
    fault = os.environ.get("FAKE_RANK_SLEEP")
    if os.environ.get("SLURM_PROCID", "0") != "0" and "SLURM_STEP_ID" in os.environ:
        time.sleep(float(fault or 0))
        return 0
    return fake_spdf.main(sys.argv[1:])


if __name__ == "__main__":
    module = sys.argv[2]
    sys.argv = [sys.argv[0], *sys.argv[3:]]
    if module == "spdf_dist":
        sys.exit(fake_main())
    from spdf_launcher import rank

    rank.main = fake_main
    sys.exit(rank.run())
