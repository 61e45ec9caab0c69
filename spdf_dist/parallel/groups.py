"""The position of this process among the ranks, and megatron-core's groups for tensor and data parallelism."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from spdf_dist.base.collective import Collective
from spdf_dist.base.extras import require_extra
from spdf_dist.base.numbers import counted
from spdf_dist.base.rank_variables import RENDEZVOUS, Ranks
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.parallel.loopback import ADDRESS, LOOPBACK, check_loopback
from spdf_dist.parallel.megatron_core import parallel_state

TIMEOUT_MINUTES = 30.0
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Groups(Collective):
    """The position of this process. Tensor ranks are consecutive: rank = data_rank * tensor_size + tensor_rank."""

    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    data_rank: int
    data_size: int
    device: torch.device

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that process the same batch and divide the matrices."""
        return parallel_state.get_tensor_model_parallel_group()

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same slices and divide the batch."""
        return parallel_state.get_data_parallel_group()

    def allgather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def all_reduce_max(self, value: float) -> float:
        if self.world_size == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return float(number.item())

    def broadcast(self, value: Any) -> Any:
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any] | None:
        if self.world_size == 1:
            return [value]
        box: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, box, dst=0)
        return box


def choose_device(device: str, local_rank: int) -> torch.device:
    """The device that the config key ``device`` means on this rank.

    Raises UserError if CUDA is requested but not available, or if the node has fewer GPUs than ranks.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is set, but torch sees no CUDA device (see `spdf doctor`)")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1 and RENDEZVOUS not in os.environ:  # srun --gpus-per-task=1 shows each rank only its own GPU
        return torch.device("cuda", 0)
    if local_rank >= count:
        raise UserError(f"device: local rank {local_rank} has no GPU: this node has {counted(count, 'GPU')}")
    return torch.device("cuda", local_rank)


def check_interface() -> None:
    """Raise UserError if GLOO_SOCKET_IFNAME names an interface that this machine does not have."""
    wanted = os.environ.get("GLOO_SOCKET_IFNAME", "")
    present = [name for _, name in socket.if_nameindex()]
    missing = [name for name in wanted.split(",") if name and name not in present]
    if missing:
        raise UserError(
            f"GLOO_SOCKET_IFNAME={wanted}: this machine has no interface {missing[0]} (it has {', '.join(present)})"
        )


def initialize(
    ranks: Ranks, tensor: int, data: int | None, device: str, timeout_minutes: float = TIMEOUT_MINUTES
) -> Groups:
    """Start torch.distributed and megatron-core's groups. A collective that takes longer than the timeout fails.

    Raises UserError if the world size does not match, or if the device or network interface does not exist.
    """
    if ranks.world_size % tensor or (data is not None and data * tensor != ranks.world_size):
        wanted = f"parallel.tensor {tensor}" + (f" x parallel.data {data}" if data is not None else "")
        raise UserError(f"world size {ranks.world_size} (from {ranks.source}) does not match {wanted}")
    where = choose_device(device, ranks.local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    elif ranks.world_size > 1:
        check_interface()
    else:
        check_loopback()
        os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK  # otherwise gloo looks up this machine's name
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # DeepSpeed needs it
    if not dist.is_initialized():
        timeout = datetime.timedelta(minutes=timeout_minutes)
        store: dist.Store | None = None
        if ranks.world_size == 1:
            store = dist.HashStore()  # no port, and no address that another job may have left in MASTER_ADDR
        elif ranks.rendezvous_file and not locks_files(ranks):
            store = loopback_store(ranks, timeout)
        address = None if store else rendezvous(ranks)
        with tells_of_waiting(ranks, address):
            dist.init_process_group(
                "nccl" if where.type == "cuda" else "gloo",
                init_method=address,
                store=store,
                rank=ranks.rank,
                world_size=ranks.world_size,
                timeout=timeout,
            )
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor)
    return Groups(
        rank=ranks.rank,
        world_size=ranks.world_size,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=tensor,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=ranks.world_size // tensor,
        device=where,
    )


@contextlib.contextmanager
def tells_of_waiting(ranks: Ranks, address: str | None) -> Iterator[None]:
    """In rank 0 and rank 1, say after ``PATIENCE_SECONDS`` for whom the block waits: variables may be another job's."""
    others = counted(ranks.world_size - 1, "other rank")
    line = f"rank {ranks.rank} waits for {others} of {ranks.source}"
    if address is not None and not ranks.rendezvous_file:
        line += f" at {address}"
    if ranks.source == "the launcher":
        line += "; unset RANK and WORLD_SIZE if no launcher started this process"
    timer = threading.Timer(PATIENCE_SECONDS, print, [line], {"file": sys.stderr})
    timer.daemon = True
    if ranks.world_size > 1 and ranks.rank < 2:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def locks_files(ranks: Ranks) -> bool:
    """Whether the folder of the rendezvous file has file locks, which torch's store in a file needs."""
    assert ranks.rendezvous_file is not None
    with tempfile.TemporaryFile(dir=Path(ranks.rendezvous_file).parent) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def loopback_store(ranks: Ranks, timeout: datetime.timedelta) -> dist.Store:
    """A store that rank 0 serves on a free loopback port; the rendezvous file tells the other ranks the port.

    Raises SpdfError when rank 0 does not begin in time.
    """
    assert ranks.rendezvous_file is not None
    path = Path(ranks.rendezvous_file)
    if ranks.rank == 0:
        store = dist.TCPStore(ADDRESS, 0, ranks.world_size, True, timeout, wait_for_workers=False)
        aside = path.with_suffix(".port")
        aside.write_text(str(store.port))
        aside.replace(path)
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while not path.exists():
        if time.monotonic() > deadline:
            raise SpdfError("rank 0 has not started")
        time.sleep(0.02)
    return dist.TCPStore(ADDRESS, int(path.read_text()), ranks.world_size, False, timeout, wait_for_workers=False)


def rendezvous(ranks: Ranks) -> str:
    """The init_method of torch.distributed: a file for ranks that this program spawned, otherwise an address.

    The address is MASTER_ADDR and MASTER_PORT. If they are not set, ``meeting_point`` gives them. Raises UserError.
    """
    if ranks.rendezvous_file:
        return f"file://{ranks.rendezvous_file}"
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        address, port = meeting_point(ranks)
        os.environ.setdefault("MASTER_ADDR", address)
        os.environ.setdefault("MASTER_PORT", str(port))
    return f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def meeting_point(ranks: Ranks) -> tuple[str, int]:
    """Address and port of rank 0 if the launcher sets none: from MPI's rank 0, or from Slurm's node list.

    Raises UserError under other launchers, and if the node list cannot be read.
    """
    if ranks.source == "MPI":
        require_extra("mpi", "training under mpirun")
        from mpi4py import MPI

        from spdf_dist.parallel.ranks import free_port

        place = None
        if MPI.COMM_WORLD.Get_rank() == 0:
            local = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "0")) == ranks.world_size
            place = ("127.0.0.1" if local else MPI.Get_processor_name(), free_port())
        address, port = MPI.COMM_WORLD.bcast(place, root=0)
        return str(address), int(port)
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    missing = " and ".join(name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ)
    if not nodes:
        raise UserError(f"the {ranks.world_size} ranks of {ranks.source} cannot find each other: {missing} must be set")
    try:
        words = ["scontrol", "show", "hostnames", nodes]
        listed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"`scontrol show hostnames {nodes}` failed ({error}): set {missing}") from None
    step = int(os.environ.get("SLURM_JOB_ID", "0")) * 17 + int(os.environ.get("SLURM_STEP_ID", "0"))
    return listed.stdout.split()[0], 20000 + step % 40000


class Mpu:
    """megatron-core's groups under the names that DeepSpeed needs. The module ``parallel_state`` lacks some of them."""

    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_model_parallel_rank = get_tensor_model_parallel_rank
    get_model_parallel_world_size = get_tensor_model_parallel_world_size
    get_model_parallel_group = get_tensor_model_parallel_group
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)
