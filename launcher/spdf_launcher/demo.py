"""`make demo`: runs the demo workflow and prints a table. It uses real data if SPDF_DATA names a folder with them.

The number of pre-training tokens depends on the speed of the machine, so that the demo takes a few minutes.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from spdf_dist.accounting.flops import linears_share
from spdf_dist.accounting.text_table import text_table
from spdf_dist.base.numbers import clock, short_count
from spdf_dist.cli.main import main as spdf
from spdf_dist.config.load import config_from_tree
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.workflow_folder import PLAN, PRETRAIN, job_folder, read_json
from spdf_launcher.folder import read_lines
from spdf_launcher.plan import Job
from spdf_launcher.status import read_plan
from spdf_launcher.summary import pretraining_flops

BUDGET_SECONDS = 300.0
"""Target time of all jobs, without the installation."""
TOKENS = (819_200, 614_400, 409_600, 204_800)
"""Pre-training tokens to choose from, multiples of a step's 8 x 128."""
STEP_TOKENS = 8 * 128
FIXED_PROBES = 3000.0
"""Time of everything except pre-training steps, in probe steps (see ``probe_seconds``)."""
STEP_PROBES = 1.5
"""Time of a pre-training step, in probe steps. The demo trains two variants."""


NOTE = """
The demo shows that every part works. It does not show which variant is better, because it has one seed and one
learning rate. The losses depend on the number of tokens, the Python version (its standard library is the text) and the
processor. The time per step is a median under the load of this machine. The linear layers have only {share:.0%} of the
dense model's FLOPs at this size. `spdf bench step` compares steps of larger models in pairs."""


def probe_seconds(steps: int = 9) -> float:
    """Median seconds per training step of a plain PyTorch model of the demo's size: 4 x 128 tokens, one thread."""
    import torch
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(2048, 128), body, nn.Linear(128, 2048))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(0, 2048, (4, 128))
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return statistics.median(times)


def estimated_seconds(tokens: int, probe: float) -> float:
    """Seconds of the demo with ``tokens`` pre-training tokens, if a probe step takes ``probe`` seconds."""
    return probe * (FIXED_PROBES + 2 * STEP_PROBES * tokens / STEP_TOKENS)


def size_for(probe: float) -> int:
    """The largest entry of TOKENS within the time budget; the smallest entry if none is."""
    return next((tokens for tokens in TOKENS if estimated_seconds(tokens, probe) <= BUDGET_SECONDS), TOKENS[-1])


def planned_tokens(root: Path) -> int | None:
    """The pre-training tokens of an earlier demo in ``root``; None if there is none."""
    plan = read_json(root / PLAN) or {}
    for job in plan.get("jobs") or []:
        if job.get("kind") == PRETRAIN:
            return int(job["config"]["training"]["train_tokens"])
    return None


def rows(root: Path, jobs: list[Job]) -> list[list[str]]:
    """The final table: a head, then one row per variant."""
    head = ["", "validation loss", "FLOPs", "ms per step", "fine-tuning loss before", "after", "weights reactivated"]
    table = [head]
    by_name = {(job.name, job.variant): job for job in jobs}
    for variant in dict.fromkeys(job.variant for job in jobs if job.variant):
        pretrain, finetune = (by_name[name, variant] for name in ("pretrain", "finetune"))
        lines = read_lines(job_folder(root, pretrain.id).run_dir / "metrics.jsonl")
        steps = [line["step_ms"] for line in lines if "step_ms" in line]
        losses = [line["val_loss"] for line in lines if "val_loss" in line]
        run = job_folder(root, finetune.id).run_dir
        tuned = read_json(run / "finetune.json") or {}
        first = next((line["loss"] for line in read_lines(run / "metrics.jsonl") if "loss" in line), None)
        table.append(
            [
                variant,
                text(losses[-1] if losses else None),
                f"{pretraining_flops(pretrain):.3g}",
                text(statistics.median(steps[len(steps) // 10 :]) if steps else None, 0),
                text(first),
                text(tuned.get("best_val_loss")),
                short_count(tuned.get("reactivated") or 0),
            ]
        )
    return table


def text(value: Any, digits: int = 3) -> str:
    """A number in the table; a dash for None."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def main() -> int:
    """Run the demo and print the table; return an exit code."""
    data = os.environ.get("SPDF_DATA")
    name = "demo_real" if data else "demo"
    root = (Path("runs") / name).absolute()
    if data:
        print(f"Data: real text and E2E from SPDF_DATA={data}")
    else:
        print("Data: text of this Python installation, and synthetic E2E from a grammar (set SPDF_DATA for real data)")
    began = time.monotonic()
    words = ["run", name, "--dir", str(root), "--on", "local", "variants.untrained=null"]
    tokens = planned_tokens(root)
    if tokens is None:
        probe = probe_seconds()
        tokens = size_for(probe)
        estimate = clock(estimated_seconds(tokens, probe))
        print(f"A step of a small test model takes {1000 * probe:.0f} ms here, so each model gets {tokens:,} tokens.")
        more = " and more with the real data" if data else ""
        print(f"The demo takes about {estimate} without other load on the machine{more}.", flush=True)
    sizes = {"train_tokens": tokens, "warmup_tokens": tokens // 20}
    words += [f"jobs.pretrain.set.training.{key}={number}" for key, number in sizes.items()]
    code = spdf(words)
    if code:
        return code
    jobs = read_plan(root)
    table = rows(root, jobs)
    print(f"\nPre-training on {tokens:,} tokens, then dense fine-tuning{'' if data else ' on synthetic data'}")
    print(text_table(table[0], table[1:]))
    print(NOTE.format(share=dense_share(jobs)))
    print(f"\nreport:       {root}/jobs/report/out/index.html")
    print(f"TensorBoard:  {sys.executable} -m tensorboard.main --logdir {root}/jobs (its tab Time Series)")
    print(f"time:         {clock(time.monotonic() - began)}")
    return 0


def dense_share(jobs: list[Job]) -> float:
    """The linear layers' share of the dense model's FLOPs."""
    config = next(job.config for job in jobs if job.kind == PRETRAIN)
    return linears_share(config_from_tree(PretrainConfig, config or {}).model)


if __name__ == "__main__":
    sys.exit(main())
