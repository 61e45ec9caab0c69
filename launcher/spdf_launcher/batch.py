"""The last command of a batch script in slurm/: runs srun and requeues the job when it can continue.

    exec python -m spdf_launcher.batch RUN_DIR srun ... python -m spdf_launcher.rank pretrain CONFIG run_dir=RUN_DIR ...

On SIGUSR1 (sbatch --signal=B:USR1@SECONDS) and at preemption, which Slurm signals to the ranks only, the ranks save and
the job returns to the queue. A failed job is retried until it has failed three times in a row without a new checkpoint
in between. Bad input (2) and a non-finite loss (3) are not retried. If a node is lost, Slurm requeues the job, and this
does not count as a failure. A new submission resets the count. Logs go to RUN_DIR/logs.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from spdf_dist.base.signals import ReceivedSignals
from spdf_dist.config.errors import EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_STOPPED
from spdf_dist.workflow_folder import JobFolder
from spdf_launcher.attempts import END, RESET, START, history, newest_checkpoint, record
from spdf_launcher.executors.local import Local
from spdf_launcher.executors.slurm import Slurm
from spdf_launcher.folder import now
from spdf_launcher.process import goes_on, outcome_of, reported_exit_code, run_command
from spdf_launcher.rank import EXIT_FILE
from spdf_launcher.requeue import requeue_self, slurm_job

MAX_FAILURES = 3


def main(arguments: list[str]) -> int:
    """Run one attempt; return the job's exit code, or requeue the job and do not return."""
    if len(arguments) < 2:
        print("usage: python -m spdf_launcher.batch RUN_DIR COMMAND ...", file=sys.stderr)
        return EXIT_BAD_INPUT
    run_dir, command = Path(arguments[0]), arguments[1:]
    folder = JobFolder(run_dir / "logs")
    folder.path.mkdir(parents=True, exist_ok=True)
    log_path = folder.path / f"slurm-{slurm_job() or os.getpid()}.log"
    print(f"{now()} output in {log_path}", flush=True)
    exit_file = folder.path / "exit_code"
    exit_file.unlink(missing_ok=True)
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":  # submitted by a person, not requeued
        record(folder, RESET)
    record(folder, START, host=socket.gethostname(), slurm_job_id=slurm_job(), checkpoint=newest_checkpoint(run_dir))
    with ReceivedSignals() as signals, log_path.open("ab") as log:
        log.write(f"== {now()} {os.environ.get('SLURM_JOB_NODELIST', socket.gethostname())}\n".encode())
        log.flush()
        code = run_command(
            command,
            signals,
            cwd=None,
            environment={**os.environ, "PYTHONUNBUFFERED": "1", EXIT_FILE: str(exit_file.absolute())},
            output=log.fileno(),
            errors=log.fileno(),
            forward=(Slurm() if slurm_job() is not None else Local()).forward,
        )
        code = reported_exit_code(code, exit_file)
        outcome = outcome_of(code, signals)
        record(folder, END, exit_code=code, outcome=outcome, checkpoint=newest_checkpoint(run_dir))
        print(f"{now()} {outcome}, exit code {code}", flush=True)
        if slurm_job() is None or outcome == "done" or code in (EXIT_BAD_INPUT, EXIT_NON_FINITE):
            return code
        if outcome == "stopped" and not goes_on(signals):
            return EXIT_STOPPED
        if outcome == "failed" and history(folder).failures >= MAX_FAILURES:
            print(f"{MAX_FAILURES} failures with no new checkpoint in between: not tried again", flush=True)
            return 1
        requeue_self()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
