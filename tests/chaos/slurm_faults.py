"""Faults of a Slurm cluster under a training job on two nodes: real daemons, one network per node.

The cluster is that of tests/slurm. Needs root, slurm-wlm, munge and iproute2.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from chaos.campaign import Campaign, Tally, differences, newest_step, result_of
from chaos.forks import start_ranks, wait

SLURM_TESTS = Path(__file__).parents[1] / "slurm"
STEPS = 200
INTERVAL = 10
PROGRESS_SECONDS = 240.0
"""Longest time until a disturbed job saves a new checkpoint."""

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "model": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "seq_length": 16, "vocab_size": 320},
    "sparsity": {"level": 0.75, "execution": "compressed"},
    "training": {
        "train_tokens": STEPS * 4 * 16,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "lr": 1e-3,
        "warmup_tokens": 640,
    },
    "checkpoint": {"interval": INTERVAL, "keep": 2},
}


def slurm_bench() -> ModuleType:
    """The module with the helpers of the Slurm tests."""
    sys.path.insert(0, str(SLURM_TESTS))
    spec = importlib.util.spec_from_file_location("slurm_bench", SLURM_TESTS / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SlurmFaults:
    """A cluster, a training job on two of its nodes, and faults from one seed."""

    def __init__(self, campaign: Campaign) -> None:
        module = slurm_bench()
        from cluster import own_network  # type: ignore[import-not-found]

        self.rng = random.Random(f"{campaign.seed} slurm")
        settings = SETTINGS | {"data": {"train": [str(campaign.work / "packed")]}}
        Path("slurm.yaml").write_text(yaml.safe_dump(settings))
        words = ("pretrain", "slurm.yaml", "run_dir=slurm-expected", "parallel.data=2")
        ends = [wait(rank, 600.0) for rank in start_ranks(words, 2, str(campaign.work / "slurm-meeting"))]
        assert [end.code for end in ends] == [0, 0], ends
        self.expected = result_of(Path("slurm-expected"))
        own_network()
        self.cluster = module.Cluster(network=True)
        try:
            self.cluster.start()
        except BaseException:
            print(self.cluster.logs(), file=sys.stderr)
            self.cluster.stop()
            raise
        self.bench_of: Callable[[Path], Any] = lambda path: module.SlurmBench(path, self.cluster, fake=False)
        self.settings = settings
        self.next_look = 0.0
        self.order: list[str] = []
        """Faults that are still to be made before each has had its turn again."""
        self.faults: dict[str, Callable[[], None]] = {
            "node crash, reported": self.crash_reported,
            "node crash, not reported": self.crash_silent,
            "controller killed and restarted": self.restart_controller,
            "network cut of seconds": self.cut_briefly,
            "network cut until the node is down": self.cut_long,
            "preemption": self.preempt,
            "requeue": self.requeue,
            "scancel and a new start": self.cancel,
            "signal before the time limit": self.limit,
            "one rank killed": self.kill_rank,
        }

    def run(self, deadline: float, most: int) -> Tally:
        """Disturb jobs until ``most`` faults are made or the time is over. The cluster is stopped at the end."""
        tally = Tally()
        number = 0
        try:
            while tally.counts.get("faults", 0) < most and time.monotonic() < deadline:
                number += 1
                self.disturb(tally, number, deadline, most)
        finally:
            self.cluster.stop()
        return tally

    def disturb(self, tally: Tally, number: int, deadline: float, most: int) -> None:
        """Start one job, disturb it between checkpoints, and compare its result with the undisturbed one."""
        folder = Path(f"slurm-{number}").absolute()
        folder.mkdir()
        self.bench = bench = self.bench_of(folder)
        job = {"kind": "pretrain", "set": self.settings}
        job["resources"] = {"nodes": 2, "ranks_per_node": 1, "time": "30:00"}
        bench.file = bench.write(yaml.safe_dump({"jobs": {"pretrain": job}}))
        bench.run()
        self.run_dir = bench.dir / "jobs/pretrain/run"
        self.slurm_id = bench.states()["pretrain"]["slurm_id"]
        while self.progress(tally, self.rng.randrange(1, INTERVAL)):
            if tally.counts.get("faults", 0) >= most or time.monotonic() >= deadline:
                break
            self.order = self.order or self.rng.sample(list(self.faults), len(self.faults))
            name = self.order.pop()
            step = self.step()
            self.faults[name]()
            tally.add("faults")
            tally.add(name)
            print(f"  slurm {number}: {name} at step {step}", flush=True)
        self.complete(tally, number)
        tally.add("jobs")

    def progress(self, tally: Tally, more: int) -> bool:
        """Wait for a new checkpoint and ``more`` steps after it. False when the job ends first, or makes none."""
        begin, end = newest_step(self.run_dir), time.monotonic() + PROGRESS_SECONDS
        while time.monotonic() < end:
            saved = newest_step(self.run_dir)
            if saved >= STEPS or self.step() >= STEPS - more:
                return False
            if saved > begin and self.step() >= saved + more:
                return True
            if self.step() < saved:
                begin = saved
            self.administer(tally)
            time.sleep(0.1)
        tally.require(False, f"no progress from step {begin}: {self.bench.states()} {self.bench.tail()[-1500:]}")
        return False

    def complete(self, tally: Tally, number: int) -> None:
        """Wait for the job's end and compare it with the undisturbed one."""
        end, state = time.monotonic() + 600, ""
        while state not in ("done", "failed", "cancelled"):
            self.administer(tally)
            state = self.bench.states()["pretrain"]["state"]
            if time.monotonic() > end:
                tally.require(False, f"slurm {number} does not end: it is {state}: {self.bench.tail()[-1500:]}")
                self.cluster.command("scancel", "--full", "--user=root", check=False)
                return
        tally.require(state == "done", f"slurm {number} is {state}: {self.bench.tail()[-1500:]}")
        if state == "done":
            found = result_of(self.run_dir)
            same = found == self.expected
            tally.require(same, f"slurm {number}: other numbers: {'' if same else differences(found, self.expected)}")
        self.restore()

    def administer(self, tally: Tally) -> None:
        """Release the job if Slurm holds it, as an administrator would.

        Slurm does so when it launches a job on a node that still runs the attempt before, and drains the node.
        """
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + 3.0
        if self.cluster.job(self.slurm_id).get("Reason") != "launch_failed_requeued_held":
            return
        for name in self.cluster.names:
            if "drain" in self.node_state(name):
                self.cluster.command("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self.cluster.command("scontrol", "release", self.slurm_id, check=False)
        tally.add("held jobs released")

    def restore(self) -> None:
        """Bring every node back. A new controller refuses jobs until the nodes have registered with it."""
        for name in self.cluster.names:
            if name not in self.cluster.daemons:
                self.cluster.start_node(name)
            self.cluster.link(name, "up")
            if any(word in self.node_state(name) for word in ("drain", "down")):
                self.cluster.command("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self.cluster.wait_idle(180)  # a controller waits a minute for a node that missed its last message

    def step(self) -> int:
        """The last step in the metrics file; 0 without one."""
        try:
            lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, IndexError, ValueError):
            return 0

    def nodes(self) -> list[str]:
        """The nodes of the running job."""
        names = self.cluster.job(self.slurm_id).get("NodeList", "")
        return str(self.cluster.command("scontrol", "show", "hostnames", names)).split() if "n" in names else []

    def one_node(self) -> str:
        """One of the job's nodes."""
        nodes = self.nodes()
        return self.rng.choice(nodes or self.cluster.names)

    def node_state(self, name: str) -> str:
        """Slurm's state of a node."""
        return str(self.cluster.command("sinfo", "-h", "-n", name, "-p", "main", "-o", "%T", check=False)).strip()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition holds, at most this long."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.2)
        return condition()

    # ---- faults -----------------------------------------------------------------------------------------------------

    def crash_reported(self) -> None:
        name = self.one_node()
        self.cluster.crash_node(name)
        self.cluster.command("scontrol", "update", f"nodename={name}", "state=down", "reason=crashed")
        time.sleep(1)
        self.cluster.start_node(name)
        self.cluster.command("scontrol", "update", f"nodename={name}", "state=resume", check=False)

    def crash_silent(self) -> None:
        name = self.one_node()
        self.cluster.crash_node(name)
        self.wait_for(lambda: "down" in self.node_state(name), 90)
        self.cluster.start_node(name)

    def restart_controller(self) -> None:
        self.cluster.kill_controller()
        time.sleep(self.rng.uniform(0.5, 5))
        self.cluster.start_controller()
        self.wait_for(lambda: self.node_state("n1") != "", 30)

    def cut_briefly(self) -> None:
        name = self.one_node()
        self.cluster.link(name, "down")
        time.sleep(self.rng.uniform(1, 5))
        self.cluster.link(name, "up")

    def cut_long(self) -> None:
        name = self.one_node()
        self.cluster.link(name, "down")
        self.wait_for(lambda: "down" in self.node_state(name), 150)
        time.sleep(self.rng.uniform(0, 5))
        self.cluster.link(name, "up")

    def preempt(self) -> None:
        words = ("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        self.cluster.command("sbatch", *words)

    def requeue(self) -> None:
        self.cluster.command("scontrol", "requeue", self.slurm_id, check=False)

    def cancel(self) -> None:
        self.cluster.command("scancel", self.slurm_id)
        self.wait_for(lambda: not str(self.cluster.command("squeue", "-h")).strip(), 90)
        self.bench.run()
        self.slurm_id = self.bench.states()["pretrain"]["slurm_id"]

    def limit(self) -> None:
        self.cluster.command("scancel", "--batch", "--signal=USR1", self.slurm_id, check=False)

    def kill_rank(self) -> None:
        mark = f"spdf_launcher.rank pretrain {self.bench.dir}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark in path.read_bytes().replace(b"\0", b" "):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        if found:
            os.kill(self.rng.choice(found), signal.SIGKILL)
