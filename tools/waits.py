"""Measures how long training waits for checkpoints and for a slow disk. One process, variants in turn.

  python tools/waits.py saves CONFIG key=value...               no checkpoints; synchronous; asynchronous
  python tools/waits.py data CONFIG key=value... --delay 0.1    a disk that takes --delay seconds per batch

The measured steps have a small batch (--batch). The cost of a save is given as a share of --every steps of the config's
own batch, of which one is measured too. With --processor, the times of `saves` are processor time of all threads, which
other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.training.batches import GlobalBatch, PretrainBatches
from spdf_dist.training.loop import Loop
from spdf_dist.training.prefetch import Prefetch
from spdf_dist.training.pretrain import pretrain

Seconds = tuple[float, float]
"""Seconds of the loop, and those of them in which it waited for checkpoints."""


def seconds_of(config: PretrainConfig, clock: Callable[[], float] = time.perf_counter) -> Seconds:
    """Train; returns the seconds of the loop and those that it waited for checkpoints. The run folder is deleted."""
    took: list[float] = []
    stalled: list[float] = []
    run = Loop.run

    def timed(self: Loop) -> None:
        begin = clock()
        run(self)
        took.append(clock() - begin)
        stalled.append(self.saver.stalled)

    Loop.run = timed  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            pretrain(config, SINGLE_PROCESS)
    finally:
        Loop.run = run  # type: ignore[method-assign]
        shutil.rmtree(config.run_dir)
    return took[0], stalled[0]


def in_turn(variants: dict[str, Callable[[], Seconds]], rounds: int) -> dict[str, list[Seconds]]:
    """The results of each variant, round after round; a first round is not counted."""
    found: dict[str, list[Seconds]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            result = run()
            if number:
                found[name].append(result)
    return found


def medians(results: list[Seconds]) -> Seconds:
    """Median seconds of the loop and of the waits for checkpoints."""
    return statistics.median(r[0] for r in results), statistics.median(r[1] for r in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("saves", "data"))
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=24, help="steps of a measured run (24)")
    parser.add_argument("--batch", type=int, default=2, help="sequences of a measured step (2)")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints that the share is for (20)")
    parser.add_argument("--saves", type=int, default=3, help="checkpoints of a measured run besides the last (3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds per batch of the slow disk (0.1)")
    parser.add_argument("--processor", action="store_true", help="measure processor time")
    args = parser.parse_args()
    whole: Any = load_config(PretrainConfig, args.config, args.overrides)
    length, own_batch = whole.model.seq_length, whole.training.global_batch_size
    clock = time.process_time if args.processor and args.what == "saves" else time.perf_counter
    with tempfile.TemporaryDirectory(dir=".", prefix=".waits-") as folder:

        def run(steps: int, *more: str, batch: int = args.batch) -> Callable[[], Seconds]:
            short = (
                *("validation.interval=1000000", "parallel.data=1", f"run_dir={Path(folder) / 'run'}"),
                *(f"training.global_batch_size={batch}", f"training.train_tokens={steps * batch * length}"),
                f"training.micro_batch_size={min(batch, whole.training.micro_batch_size)}",
                "training.warmup_tokens=0",
            )
            config = load_config(PretrainConfig, args.config, [*args.overrides, *short, *more])
            return lambda: seconds_of(config, clock)

        if args.what == "saves":
            interval = f"checkpoint.interval={-(-args.steps // (args.saves + 1))}"
            found = in_turn(
                {
                    "none": run(args.steps, f"checkpoint.interval={args.steps + 1}"),
                    "synchronous": run(args.steps, interval),
                    "asynchronous": run(args.steps, interval, "checkpoint.asynchronous=true"),
                },
                args.rounds,
            )
            last = medians(found["none"])[1]
            one, three = (run(steps, batch=own_batch)()[0] for steps in (1, 3))
            own = (three - one) / 2
            print(f"a step of {own_batch} sequences of {length} tokens: {own:.2f} s")
            for name in ("synchronous", "asynchronous"):
                extra = [(a[0] - b[0]) / args.saves for a, b in zip(found[name], found["none"], strict=True)]
                waited = (medians(found[name])[1] - last) / args.saves
                cost = statistics.median(extra)
                wait = "" if args.processor else f" (training waited {waited:.3f} s)"
                print(
                    f"{name}: {cost:.3f} s per checkpoint{wait}, {cost / args.every / own:.2%} of the time with one "
                    f"every {args.every} steps; rounds: {', '.join(f'{x:.3f}' for x in extra)}"
                )
        else:
            read, ahead = PretrainBatches.batch, Prefetch.batch

            def slow(self: PretrainBatches, step: int) -> GlobalBatch:
                time.sleep(args.delay)
                return read(self, step)

            def without(self: Prefetch, step: int) -> GlobalBatch:
                return self.data.batch(step)

            def with_disk(batch: Any, method: Any) -> Seconds:
                PretrainBatches.batch, Prefetch.batch = batch, method  # type: ignore[method-assign]
                try:
                    return run(args.steps, f"checkpoint.interval={args.steps + 1}")()
                finally:
                    PretrainBatches.batch, Prefetch.batch = read, ahead  # type: ignore[method-assign]

            found = in_turn(
                {
                    "fast disk": lambda: with_disk(read, ahead),
                    "slow disk, prefetched": lambda: with_disk(slow, ahead),
                    "slow disk, not prefetched": lambda: with_disk(slow, without),
                },
                args.rounds,
            )
            for name, results in found.items():
                took, last = medians(results)
                print(f"{name}: {1000 * (took - last) / args.steps:.0f} ms per step")


if __name__ == "__main__":
    main()
