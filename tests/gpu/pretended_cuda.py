"""A pretended CUDA device, on which code for GPUs runs without one, to find tensors that are on the wrong device.

Tensors on it are CPU tensors whose storage has a label. Code under `pretended_cuda` sees that they are on cuda:N, where
N is the local rank. As on a GPU, an operation on tensors of both devices raises RuntimeError, so does a collective on
CPU tensors (as with NCCL), and ``numpy()`` of a labelled tensor raises TypeError. The CPU computes the values, and
Triton's interpreter runs the kernels. torch.cuda answers as on an H200. Streams and events do nothing. What it cannot
show: races between streams, wrong addresses, compilation, and speed.

``python tests/gpu/pretended_cuda.py pretrain CONFIG ...`` runs an ``spdf`` command on the pretended device; for several
ranks, start it with torchrun. Elsewhere, PRETEND_CUDA=1 must be set before this module, Triton and DeepSpeed are
imported.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ["PRETEND_CUDA"] = "1"
if os.environ.get("PRETEND_CUDA"):
    os.environ.update(TRITON_INTERPRET="1", DS_ACCELERATOR="cuda")  # Triton and DeepSpeed read them when imported

import torch
import torch.distributed as dist
from spdf_kernels import ops  # noqa: F401  # defines torch.ops.spdf
from spdf_kernels.backends import backend_for
from spdf_kernels.pattern import pattern_of
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

INDEX = int(os.environ.get("LOCAL_RANK", "0"))
CPU, CUDA = torch.device("cpu"), torch.device("cuda", INDEX)
CPU_ACTIVITY = [ProfilerActivity.CPU]
LABEL = "on_pretended_cuda"
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default}
"""Operations on tensors of both devices. The result is on the device of the first one."""
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""Operations whose indices may be on the CPU."""


def labelled(tensor: Tensor) -> bool:
    """Whether a tensor is on the pretended device."""
    return hasattr(tensor.untyped_storage(), LABEL)


def label(tensor: Tensor, on: bool = True) -> Tensor:
    """Put a tensor on the pretended device, or on the CPU, without a copy."""
    if on:
        setattr(tensor.untyped_storage(), LABEL, True)
    elif labelled(tensor):
        delattr(tensor.untyped_storage(), LABEL)
    return tensor


def device_of(value: Any) -> torch.device | None:
    """The device that a value names as a word; None if it names none."""
    if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda", "meta"):
        return torch.device(value)
    return value if isinstance(value, torch.device) else None


class Surroundings(threading.local):
    """Whether the torch function that a thread is in has operands on the GPU. torch's own code creates tensors on the
    device of its operands."""

    on_gpu = False


SURROUNDINGS = Surroundings()


def product(name: str, handle_at: int) -> Callable[..., Tensor]:
    """A product of a back end. ``handle_at`` is the position of the pattern's handle in the operator's arguments."""

    def compute(*args: Any) -> Tensor:
        pattern = pattern_of(args[handle_at])
        result: Tensor = getattr(backend_for(pattern, args[0].dtype), name)(*args[:handle_at], pattern)
        return result

    return compute


OWN = {
    torch.ops.spdf.spmm.default: product("spmm", 3),
    torch.ops.spdf.spmm_transposed.default: product("spmm_t", 2),
    torch.ops.spdf.sddmm.default: product("sddmm", 2),
}
"""Own operators. torch runs their Python code without modes, so `Dispatch` calls it itself."""


class Dispatch(TorchDispatchMode):
    """Checks the devices of the tensors of each operation and labels its results."""

    nccl = False
    """Whether torch.distributed was asked for NCCL."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        checked = tensors
        if func in COPIES:
            checked = [args[0]]
        elif func in INDEXING:
            checked = [args[0], *(value for value in args[2:] if isinstance(value, Tensor))]
        on_gpu = any(map(labelled, checked))
        if on_gpu and any(not labelled(value) and value.dim() > 0 for value in checked):  # CPU scalars are allowed
            places = [f"{CUDA if labelled(value) else CPU} {list(value.shape)}" for value in checked]
            raise RuntimeError(f"{func}: tensors on two devices: {', '.join(places)}")
        if func.namespace == "c10d" and self.nccl and not all(map(labelled, tensors)):
            raise RuntimeError(f"{func}: NCCL takes no tensors on the CPU")
        if func in OWN:
            with Functions(), self:
                return OWN[func](*args)
        place = device_of(kwargs.get("device"))
        if place is not None and place.type == "cuda":
            kwargs["device"], on_gpu = CPU, True
        elif not tensors:
            on_gpu = SURROUNDINGS.on_gpu
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, label, result) if on_gpu else result


class Functions(TorchFunctionMode):
    """Answers for a tensor's device, and moves tensors between the devices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return CUDA if labelled(args[0]) else func(*args)
        if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):
            return not args[0].is_meta and labelled(args[0]) == (func == Tensor.is_cuda.__get__)
        if func is Tensor.get_device:
            return INDEX if labelled(args[0]) else -1
        if func is Tensor.numpy and labelled(args[0]):
            raise TypeError(f"can't convert {CUDA} device type tensor to numpy")
        before = SURROUNDINGS.on_gpu
        operands = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        SURROUNDINGS.on_gpu = any(map(labelled, operands))
        try:
            if func in (Tensor.cpu, Tensor.cuda, Tensor.to):
                return moved(func, args, kwargs)
            named = kwargs.get("device")
            place = CUDA if isinstance(named, int) else device_of(named)
            if place is None or place.type == "meta":
                return func(*args, **kwargs)
            kwargs["device"] = CPU
            if "pin_memory" in kwargs:
                kwargs["pin_memory"] = False
            result = func(*args, **kwargs)
            return label(result, place.type == "cuda") if isinstance(result, Tensor) else result
        finally:
            SURROUNDINGS.on_gpu = before


def moved(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """The result of ``Tensor.cpu``, ``Tensor.cuda`` or ``Tensor.to``."""
    tensor, *others = args
    values = [*others, *kwargs.values()]
    places = [place for place in map(device_of, values) if place is not None]
    if tensor.is_meta or any(place.type == "meta" for place in places):
        result: Tensor = func(*args, **kwargs)
        return result
    like = next((value for value in values if isinstance(value, Tensor)), None)
    types = [value for value in values if isinstance(value, torch.dtype)]
    if func is not Tensor.to:
        to_gpu = func is Tensor.cuda
    elif like is not None:
        to_gpu = labelled(like)
    else:
        to_gpu = places[0].type == "cuda" if places else labelled(tensor)
    dtype = like.dtype if like is not None else types[0] if types else tensor.dtype
    moves = to_gpu != labelled(tensor)
    result = tensor.to(dtype, copy=moves or kwargs.get("copy", False))
    return label(result, to_gpu) if moves else result


def under(mode: Callable[[], contextlib.AbstractContextManager[object]], function: Callable[..., Any]) -> Any:
    """``function``, run in a context."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def both_modes() -> Iterator[None]:
    """Both modes; they belong to a thread."""
    with Functions(), Dispatch():
        yield


@contextlib.contextmanager
def no_modes() -> Iterator[None]:
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


class Event:
    """Has the interface of torch.cuda.Event and the host's time."""

    at = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def wait(self, stream: Any = None) -> None: ...


class Stream:
    """Has the interface of torch.cuda.Stream."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()


class Generator(torch.Generator):
    """A generator of the CPU, also for the pretended device."""

    def __new__(cls, device: Any = None) -> Generator:
        return super().__new__(cls, "cpu")


def nothing(*args: Any, **kwargs: Any) -> None: ...


def always(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


H200 = SimpleNamespace(
    name="pretended NVIDIA H200",
    total_memory=2**37,
    multi_processor_count=132,
    major=9,
    minor=0,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 * 2**20,
)
ANSWERS: dict[str, Any] = {
    **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), always(True)),
    "is_current_stream_capturing": always(False),
    **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), always(0)),
    **dict.fromkeys(
        (
            "set_device", "set_sync_debug_mode", "synchronize", "empty_cache", "reset_peak_memory_stats",
            "manual_seed", "manual_seed_all", "set_rng_state", "_lazy_init", "_sleep",
        ),
        nothing,
    ),
    **dict.fromkeys(("device", "stream"), lambda which: contextlib.nullcontext()),
    **dict.fromkeys(("current_stream", "default_stream"), lambda device=None: Stream()),
    "device_count": always(8),
    "current_device": always(INDEX),
    "get_device_capability": always((9, 0)),
    "get_device_name": always(H200.name),
    "get_device_properties": always(H200),
    "mem_get_info": always((2**37, 2**37)),
    "memory_stats": always({}),
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "Event": Event,
    "Stream": Stream,
}  # fmt: skip


@contextlib.contextmanager
def pretended_cuda() -> Iterator[None]:
    """Replace torch.cuda, and run what follows in this thread, and in its pools of threads, on the pretended device."""
    import deepspeed  # noqa: F401  # looks at torch.cuda
    import spdf_kernels.triton.products  # noqa: F401  # prepares Triton's interpreter
    import torch._dynamo  # looks at torch.cuda
    from triton.runtime.interpreter import GridExecutor

    start, submit = dist.init_process_group, ThreadPoolExecutor.submit
    saved, hook, late_hook = (
        torch.autograd.graph.saved_tensors_hooks.__init__,
        Tensor.register_hook,
        Tensor.register_post_accumulate_grad_hook,
    )

    def with_gloo(backend: str, device_id: Any = None, **kwargs: Any) -> None:
        Dispatch.nccl = backend == "nccl"
        start("gloo", **kwargs)

    def submitted(pool: ThreadPoolExecutor, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return submit(pool, under(both_modes, work), *args, **kwargs)

    # The autograd engine calls Python code without function modes.
    replaced: list[tuple[Any, str, Any]] = [
        *((torch.cuda, name, answer) for name, answer in ANSWERS.items()),
        (torch.profiler, "profile", lambda activities, **kwargs: profile(activities=CPU_ACTIVITY, **kwargs)),
        *((torch.cuda.nvtx, name, nothing) for name in ("range_push", "range_pop")),
        (torch, "Generator", Generator),
        (torch.version, "cuda", "13.0"),
        (dist, "init_process_group", with_gloo),
        (dist.distributed_c10d, "_get_object_coll_device", lambda group=None: "cuda" if Dispatch.nccl else "cpu"),
        (ThreadPoolExecutor, "submit", submitted),
        (GridExecutor, "__call__", under(no_modes, GridExecutor.__call__)),
        (
            torch.autograd.function.BackwardCFunction,
            "apply",
            under(Functions, torch.autograd.function.BackwardCFunction.apply),
        ),
        (
            torch.autograd.graph.saved_tensors_hooks,
            "__init__",
            lambda self, *hooks: saved(self, *(under(Functions, each) for each in hooks)),
        ),
        (Tensor, "register_hook", lambda tensor, each: hook(tensor, under(Functions, each))),
        (Tensor, "register_post_accumulate_grad_hook", lambda tensor, each: late_hook(tensor, under(Functions, each))),
    ]
    for name in ("", ".availability", ".backends", ".cross_entropy", ".layers", ".products", ".trial"):
        module = importlib.import_module(f"spdf_kernels.triton{name}")
        replaced.append((module, "interpreted", always(False)))
    with contextlib.ExitStack() as stack:
        for target, name, value in replaced:
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(both_modes())
        yield


if __name__ == "__main__":
    from spdf_dist.cli.main import main

    with pretended_cuda():
        code = main(sys.argv[1:])
    sys.exit(code)
