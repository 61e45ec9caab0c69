"""torchrun, mpirun and the deepspeed launcher train equally, on one node and with two host names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BIN = Path(sys.executable).parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
CONFIG = """
device: cpu
model: {num_layers: 1, hidden_size: 32, num_attention_heads: 2, seq_length: 32, vocab_size: 512}
sparsity: {level: 0.5, execution: masked}
training: {train_tokens: 1024, global_batch_size: 4, micro_batch_size: 2, lr: 1e-3}
parallel: {tensor: 2}
"""
WORKFLOW = """
jobs:
  pretrain:
    kind: pretrain
    config: config.yaml
    resources: {nodes: NODES, ranks_per_node: RANKS}
"""
HOSTS = ("127.0.0.2", "127.0.0.3")


def call(words: list[str], cwd: Path, env: dict[str, str] = ENV) -> str:
    """Run a command that must succeed. Returns its output."""
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    logs = "".join(path.read_text()[-3000:] for path in cwd.glob("work*/jobs/**/job.log"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:] + logs
    return done.stdout


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def losses(run_dir: Path) -> list[float]:
    """The losses of a run."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config for a small packed text."""
    path = tmp_path_factory.mktemp("ways")
    spdf = [sys.executable, "-m", "spdf_dist", "data"]
    call([*spdf, "python-text", "--out", "text.jsonl", "--max-mb", "0.3"], path)
    call([*spdf, "tokenizer", "train", "--input", "text.jsonl", "--vocab-size", "512", "--out", "t.model"], path)
    words = ["--input", "text.jsonl", "--tokenizer", "t.model", "--seq-len", "32", "--out", "packed", "--workers", "1"]
    call([*spdf, "pack", *words], path)
    (path / "config.yaml").write_text(f"{CONFIG}data: {{train: {path}/packed}}\n")
    return path


@pytest.fixture(scope="module")
def torchrun(folder: Path) -> list[float]:
    """The losses under torchrun."""
    words = [str(BIN / "torchrun"), "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "spdf_dist"]
    call([*words, "pretrain", "config.yaml", "run_dir=torchrun"], folder)
    found = losses(folder / "torchrun")
    assert len(found) == 8
    return found


def test_mpirun(folder: Path, torchrun: list[float]) -> None:
    words = [str(BIN / "mpirun"), "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "-n", "2", sys.executable]
    call([*words, "-m", "spdf_dist", "pretrain", "config.yaml", "run_dir=mpirun"], folder)
    assert losses(folder / "mpirun") == torchrun


def test_deepspeed_on_one_node(folder: Path, torchrun: list[float]) -> None:
    (folder / "one.yaml").write_text(WORKFLOW.replace("NODES", "1").replace("RANKS", "2"))
    words = [sys.executable, "-m", "spdf_dist", "run", "one.yaml", "--dir", "work1", "--on", "deepspeed"]
    call([*words, f"--launcher-flag=--master_port={free_port()}"], folder)
    assert losses(folder / "work1/jobs/pretrain/run") == torchrun
    argv = json.loads((folder / "work1/jobs/pretrain/manifest.json").read_text())["argv"]
    assert argv[0].endswith("/deepspeed") and "--module" in argv


def test_deepspeed_is_stopped_and_goes_on(folder: Path) -> None:
    (folder / "one.yaml").write_text(WORKFLOW.replace("NODES", "1").replace("RANKS", "2"))
    words = [sys.executable, "-m", "spdf_dist", "run", "one.yaml", "--dir", "work3", "--on", "deepspeed"]
    words += [f"--launcher-flag=--master_port={free_port()}", "jobs.pretrain.set.training.train_tokens=128000"]
    process = subprocess.Popen(words, cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = folder / "work3/jobs/pretrain/run/metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 20):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 75, out + errors
    done = len(losses(metrics.parent))
    assert 20 <= done < 1000
    assert (metrics.parent / f"checkpoints/step_{done}/manifest.json").exists()


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start an ssh daemon on loopback addresses. Returns the environment with which pdsh uses it."""
    daemon = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    assert daemon and shutil.which("pdsh"), "needs: apt-get install openssh-server pdsh"
    tmp_path.chmod(0o700)
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    port = free_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress {HOSTS[0]}\nListenAddress {HOSTS[1]}\nHostKey {tmp_path}/host\nUsePAM no\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nPermitRootLogin yes\nPidFile none\n"
    )
    process = subprocess.Popen([daemon, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=subprocess.DEVNULL)
    options = (
        f"-p {port} -i {tmp_path}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    )
    yield ENV | {"PDSH_SSH_ARGS_APPEND": options}
    process.terminate()
    process.wait(20)


def test_deepspeed_over_two_hosts(folder: Path, torchrun: list[float], sshd: dict[str, str]) -> None:
    (folder / "two.yaml").write_text(WORKFLOW.replace("NODES", "2").replace("RANKS", "1"))
    (folder / "hosts").write_text("".join(f"{host} slots=1\n" for host in HOSTS))
    words = [sys.executable, "-m", "spdf_dist", "run", "two.yaml", "--dir", "work2", "--on", "deepspeed"]
    words += ["--hostfile", "hosts", "--launcher-flag=--no_ssh_check", f"--launcher-flag=--master_addr={HOSTS[0]}"]
    call([*words, f"--launcher-flag=--master_port={free_port()}"], folder, sshd)
    assert losses(folder / "work2/jobs/pretrain/run") == pytest.approx(torchrun, rel=1e-6)
    log = (folder / "work2/jobs/pretrain/job.log").read_text()
    assert all(f"{host}: " in log for host in HOSTS)
