"""A real Slurm cluster on one machine: munge, slurmctld and a few slurmd. Each slurmd is a node in its own namespaces.

A node has its own host name, hosts file and process tree. Killing its first process crashes the whole node. With
``network`` a node also has its own network: an address on a bridge, and a link that can be cut. Nothing under /etc is
changed. Needs root (for the namespaces), the Debian packages slurm-wlm and munge, and iproute2 for networks.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GPUS = 8
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "unshare", "mount", "hostname", "mknod")

CONF = """
ClusterName=test
SlurmctldHost={host}({controller})
SlurmctldPort={ctl_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/%n/spool
TmpFS={base}/%n/tmp
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/%n/slurmd.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=10000,sched_interval=1,bf_interval=1
DependencyParameters=kill_invalid_depend
SlurmdParameters=config_overrides
SlurmdTimeout=10
SlurmctldTimeout=30
ReturnToService=2
KillWait=3
MinJobAge={min_job_age}
JobRequeue=1
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={base}/jobcomp.log
GresTypes=gpu
NodeName=n[1-{nodes}] NodeAddr={addresses} \
Port=[{first_port}-{last_port}] Sockets=2 CoresPerSocket=64 ThreadsPerCore=1 \
RealMemory=512000 Gres=gpu:{gpus} State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE OverSubscribe=NO State=UP PriorityTier=10
"""


SUBNET = "10.213.77"
"""Addresses of a cluster with its own network: .254 is the controller, and node N has .N."""
CLONE_NEWNET = 0x40000000


def own_network() -> None:
    """Give this thread, and the processes that it starts from now on, a new network with loopback only.

    The bridge and the links of a cluster then exist in this network, and the machine's own stays as it is. Raises
    OSError if it is not possible.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def free_ports(count: int) -> list[int]:
    """Consecutive free TCP ports."""
    for first in range(20000 + os.getpid() % 5000, 30000):
        sockets = []
        try:
            for port in range(first, first + count):
                probe = socket.socket()
                sockets.append(probe)
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
        return list(range(first, first + count))
    raise RuntimeError("no free ports")


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until ``condition()`` holds. Raises TimeoutError that names ``what``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)


class Cluster:
    """Daemons that ``start`` starts and ``stop`` ends, each by its process id."""

    def __init__(self, nodes: int = 4, min_job_age: int = 300, network: bool = False) -> None:
        missing = [program for program in NEEDED if shutil.which(program) is None]
        if missing or os.geteuid() != 0:
            lacking = ", ".join(missing) or "root"
            raise RuntimeError(f"the Slurm tests lack {lacking}: as root, apt-get install slurm-wlm munge")
        self.base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.min_job_age = min_job_age
        self.network = network
        """Whether each node has its own network. The caller must have called ``own_network``."""
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        # A training in this process has set the interface of gloo, which is none between the nodes.
        inherited = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
        self.env = inherited | {"SLURM_CONF": str(self.base / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        self.write_files()
        if self.network:
            for words in ("add spdf type bridge", f"addr {SUBNET}.254/24", "set spdf up"):
                verb, rest = words.split(" ", 1)
                command = ["addr", "add", rest, "dev", "spdf"] if verb == "addr" else ["link", *words.split()]
                subprocess.run(["ip", *command], check=True)
        self.start_munge()
        self.start_controller("-c", "-i")
        for name in self.names:
            self.start_node(name)
        self.wait_idle()

    def write_files(self) -> None:
        """Write slurm.conf, gres.conf, hosts and the folders of the nodes."""
        self.base.chmod(0o755)
        ports = free_ports(len(self.names) + 1)
        for folder in ["state", "munge", *(f"{name}/{sub}" for name in self.names for sub in ("spool", "tmp"))]:
            (self.base / folder).mkdir(parents=True)
        (self.base / "slurm.conf").write_text(
            CONF.format(
                host=socket.gethostname(),
                controller=f"{SUBNET}.254" if self.network else "127.0.0.1",
                addresses=f"{SUBNET}.[1-{len(self.names)}]" if self.network else "127.0.0.1",
                base=self.base,
                ctl_port=ports[0],
                first_port=ports[1],
                last_port=ports[-1],
                nodes=len(self.names),
                gpus=GPUS,
                min_job_age=self.min_job_age,
            )
        )
        for number in range(GPUS):
            # Slurm needs character devices for its GPUs. These are additional nodes of /dev/null.
            device = self.base / f"nvidia{number}"
            subprocess.run(["mknod", "-m", "666", str(device), "c", "1", "3"], check=True)
        (self.base / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={self.base}/nvidia[0-{GPUS - 1}]\n")
        if self.network:
            lines = ["127.0.0.1 localhost", f"{SUBNET}.254 {socket.gethostname()}"]
            lines += [f"{SUBNET}.{number} {name}" for number, name in enumerate(self.names, 1)]
        else:
            lines = [f"127.0.0.1 localhost {' '.join(self.names)} {socket.gethostname()}"]
        (self.base / "hosts").write_text("\n".join(lines) + "\n")

    def start_munge(self) -> None:
        """Start munged with its own key and socket."""
        folder = self.base / "munge"
        folder.chmod(0o711)
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        options = ("key-file=key", "socket=socket", "pid-file=pid", "log-file=log", "seed-file=seed")
        arguments = [f"--{option.partition('=')[0]}={folder / option.partition('=')[2]}" for option in options]
        log = (folder / "out").open("ab")
        self.daemons["munged"] = subprocess.Popen(
            ["munged", "--foreground", *arguments], stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        wait_for((folder / "socket").exists, 10, "munged")

    def start_controller(self, *options: str) -> None:
        """Start slurmctld."""
        log = (self.base / "slurmctld.out").open("ab")
        self.daemons["slurmctld"] = subprocess.Popen(
            ["slurmctld", "-D", *options], env=self.env, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def kill_controller(self) -> None:
        """Kill slurmctld. ``start_controller`` then reads its last saved state."""
        daemon = self.daemons.pop("slurmctld")
        daemon.kill()
        daemon.wait()

    def start_node(self, name: str) -> None:
        """Start one node."""
        boot = f"hostname {name} && mount --bind {self.base}/hosts /etc/hosts && exec slurmd -D -N {name}"
        if self.network:
            address = f"{SUBNET}.{self.names.index(name) + 1}/24"
            wait = "while ! ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done"
            up = f"ip link set lo up && ip addr add {address} dev eth0 && ip link set eth0 up"
            boot = f"{wait}; {up} && {boot}"
        log = (self.base / f"{name}/out").open("ab")
        spaces = ["--uts", "--mount", "--pid", *(["--net"] if self.network else [])]
        self.daemons[name] = subprocess.Popen(
            ["unshare", *spaces, "--fork", "--kill-child", "--mount-proc", "sh", "-c", boot],
            env=self.env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        if self.network:
            self.connect(name)

    def connect(self, name: str) -> None:
        """Connect a node that is starting with the bridge."""
        pid = self.daemons[name].pid
        ours = Path("/proc/thread-self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{pid}/ns/net").readlink() != ours, 10, f"the network of {name}")
        subprocess.run(["ip", "link", "delete", f"spdf-{name}"], capture_output=True)  # of a node that has crashed
        pair = ["link", "add", f"spdf-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(pid)]
        subprocess.run(["ip", *pair], check=True)
        subprocess.run(["ip", "link", "set", f"spdf-{name}", "master", "spdf", "up"], check=True)

    def link(self, name: str, state: str) -> None:
        """Cut (`down`) or restore (`up`) the network of a node."""
        subprocess.run(["ip", "link", "set", f"spdf-{name}", state], check=True)

    def crash_node(self, name: str) -> None:
        """Kill every process of a node at once."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def stop(self) -> None:
        """End all daemons and remove the folder."""
        self.command("scancel", "--full", "--user=root", check=False)
        order = [*(name for name in self.names if name in self.daemons), "slurmctld", "munged"]
        for name in order:
            daemon = self.daemons.pop(name, None)
            if daemon is None:
                continue
            daemon.send_signal(signal.SIGKILL if name in self.names else signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.base, ignore_errors=True)

    def command(self, *words: str, check: bool = True, timeout: float = 60) -> str:
        """Standard output of a Slurm command."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def wait_idle(self, seconds: float = 60) -> None:
        """Wait until every node is idle."""

        def idle() -> bool:
            states = self.command("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
            return states == ["idle"] * len(self.names)

        wait_for(idle, seconds, "all nodes to be idle")

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job` for one job."""
        text = self.command("scontrol", "-o", "show", "job", job_id, check=False)
        lines = [line for line in text.splitlines() if f"JobId={job_id} " in line] or text.splitlines()
        return dict(word.partition("=")[::2] for word in lines[0].split() if "=" in word) if lines else {}

    def logs(self) -> str:
        """The ends of the daemons' logs, for the message of a failure."""
        parts = []
        for path in [self.base / "slurmctld.log", *sorted(self.base.glob("n*/slurmd.log")), *self.base.glob("*/out")]:
            if path.exists():
                parts.append(f"== {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(parts)
