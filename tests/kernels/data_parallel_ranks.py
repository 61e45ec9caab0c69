"""Two ranks train a small model with a SparseLinear under DDP or FSDP2. Each compares its result with one process.

Run as a program: ``data_parallel_ranks.py ddp|fsdp2 FOLDER``.
"""

import gc
import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from spdf_kernels import SparseLinear, SparsityPattern
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def build() -> nn.Sequential:
    torch.manual_seed(0)
    pattern = SparsityPattern.from_mask(torch.rand(24, 40) < 0.4)
    return nn.Sequential(SparseLinear(40, 24, pattern), nn.GELU(), nn.Linear(24, 3))


def run_rank(rank: int, kind: str, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    train(rank, kind, folder)
    # The models are freed by now, and no rank leaves while the other still needs it: else gloo can wait for ever.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def train(rank: int, kind: str, folder: str) -> None:
    alone, together = build(), build()
    model: nn.Module
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(together)
    else:
        mesh = init_device_mesh("cpu", (2,))
        fully_shard(together[0], mesh=mesh)
        model = fully_shard(together, mesh=mesh)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (alone, model)]
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        for m, optimizer, batch in zip((alone, model), optimizers, (x, x.chunk(2)[rank]), strict=True):
            optimizer.zero_grad()
            m(batch).square().mean().backward()
            optimizer.step()
    values = together[0].values
    if kind == "fsdp2":
        assert values.to_local().numel() < alone[0].values.numel()
        state = get_model_state_dict(model)
        dcp.save(state, checkpoint_id=f"{folder}/saved")
        dcp.load(state, checkpoint_id=f"{folder}/saved")
        set_model_state_dict(model, state)
        values = values.full_tensor()
    torch.testing.assert_close(values, alone[0].values)
    if rank == 0:
        print(f"{kind}: the same values as one process", flush=True)


if __name__ == "__main__":
    torch.multiprocessing.spawn(run_rank, args=(sys.argv[1], sys.argv[2]), nprocs=2)
