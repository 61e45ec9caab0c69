"""The shared library of the kernels, through ctypes.

torch is imported first, so that the library uses torch's OpenMP runtime and its threads.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
import weakref
from pathlib import Path

import torch

from spdf_kernels.pattern import SparsityPattern

LIBRARY = Path(__file__).with_name("libspdf_kernels.so")
BACKENDS = {"portable": 0, "avx512": 1, "jit": 2, "jit-avx2": 3}
DTYPES = (torch.float32, torch.bfloat16)
_NO_MEMORY = 1

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
ABI_VERSION = 1
"""What ``spdf_abi_version`` of the library must return: a library of another version could give other results."""
_SIGNATURES = {
    "spdf_abi_version": (_INT, []),
    "spdf_backend_missing": (ctypes.c_char_p, [_INT]),
    "spdf_backend_forced": (_INT, []),
    "spdf_cpu_is_intel": (_INT, []),
    "spdf_cpu_multiplies_bf16": (_INT, []),
    "spdf_pattern_new": (_POINTER, [_POINTER, _INT64, _INT64, _INT64]),
    "spdf_pattern_free": (None, [_POINTER]),
    "spdf_spmm": (_INT, [_POINTER, _INT, _INT, _INT, _POINTER, _INT64, _POINTER, _POINTER, _POINTER, _INT]),
    "spdf_spmm_packed": (_INT, [_POINTER, _INT, _INT, _POINTER, _INT64, _POINTER, _POINTER, _INT]),
    "spdf_grad_values": (_INT, [_POINTER, _INT, _INT, _POINTER, _POINTER, _INT64, _POINTER, _INT]),
    "spdf_prepare_grad_values": (_INT, [_POINTER]),
    "spdf_prepare": (_INT, [_POINTER, _INT, _INT, _INT, _INT]),
    "spdf_index_bytes": (_INT64, [_POINTER]),
    "spdf_code_bytes": (_INT64, [_POINTER]),
    "spdf_set_code_budget": (None, [_INT64]),
    "spdf_code_bytes_in_use": (_INT64, []),
}


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """(library, None), or (None, the reason why it cannot be loaded). Warns of a library that cannot be used."""
    if not LIBRARY.exists():
        return None, f"{LIBRARY.name} was not built: install the package with a C++ compiler at hand (pip install .)"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return None, _unusable(f"{LIBRARY.name} does not load: {error}")
    if library.spdf_abi_version() != ABI_VERSION:
        return None, _unusable(f"{LIBRARY.name} is of version {library.spdf_abi_version()}, not {ABI_VERSION}")
    return library, None


def _unusable(reason: str) -> str:
    """``reason``, after a warning: without the library, sparse products on a CPU take the slow path."""
    warnings.warn(
        f"{reason}; sparse products on the CPU are slow until it is built again (pip install .)", stacklevel=3
    )
    return reason


_library, missing_library = _load()


def missing(backend: str) -> str | None:
    """Why this machine cannot run a native back end; None if it can."""
    if _library is None:
        return missing_library
    reason = _library.spdf_backend_missing(BACKENDS[backend])
    return None if reason is None else reason.decode()


def unforced() -> bool:
    """Whether the library is loaded and SPDF_KERNELS_BACKEND is empty.

    The library reads the variable, because os.environ is slow after a product has evicted the caches.
    """
    return _library is not None and not _library.spdf_backend_forced()


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions that multiply bf16; True without the library, which detects them."""
    return _library is None or bool(_library.spdf_cpu_multiplies_bf16())


def is_intel() -> bool:
    """Whether the CPU is Intel's, on which MKL runs its fastest code; False without the library."""
    return _library is not None and bool(_library.spdf_cpu_is_intel())


def spmm(
    operand: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    pattern: SparsityPattern,
    backend: str,
    transposed: bool,
) -> torch.Tensor:
    """operand [T, I] W^T + bias -> [T, O]; transposed: operand [T, O] W -> [T, I]. float32 or bfloat16 on the CPU."""
    operand, values = operand.contiguous(), values.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    result = operand.new_empty(operand.shape[0], pattern.shape[1 if transposed else 0])
    status = _loaded().spdf_spmm(
        _structure(pattern),
        BACKENDS[backend],
        transposed,
        operand.dtype == torch.bfloat16,
        operand.data_ptr(),
        operand.shape[0],
        values.data_ptr(),
        None if bias is None else bias.data_ptr(),
        result.data_ptr(),
        torch.get_num_threads(),
    )
    if status != 0:
        raise MemoryError(f"no memory for a product with {pattern!r} over {operand.shape[0]} tokens")
    return result


def pack(x: torch.Tensor) -> torch.Tensor:
    """Tiles [ceil(T / 16), F | 1, 16] of x [T, F]: 16 adjacent tokens per feature, zeros after the last token."""
    tokens, features = x.shape
    count = (tokens + 15) // 16
    rows = torch.cat([x, x.new_zeros(16 * count - tokens, features)])
    tiles = x.new_zeros(count, features | 1, 16)
    tiles[:, :features] = rows.view(count, 16, features).transpose(1, 2)
    return tiles


def unpack(tiles: torch.Tensor, tokens: int, features: int) -> torch.Tensor:
    """x [T, F] of `pack`'s tiles."""
    return tiles[:, :features].transpose(1, 2).reshape(-1, features)[:tokens]


def spmm_packed(
    tiles: torch.Tensor, values: torch.Tensor, pattern: SparsityPattern, backend: str, transposed: bool
) -> torch.Tensor | None:
    """`spmm` from tiles to tiles by generated code, float32. None if there is no code."""
    result = tiles.new_empty(tiles.shape[0], pattern.shape[1 if transposed else 0] | 1, 16)
    status = _loaded().spdf_spmm_packed(
        _structure(pattern),
        BACKENDS[backend],
        transposed,
        tiles.data_ptr(),
        tiles.shape[0],
        values.data_ptr(),
        result.data_ptr(),
        torch.get_num_threads(),
    )
    if status == _NO_MEMORY:
        raise MemoryError(f"no memory for a product with {pattern!r} over {tiles.shape[0]} tiles")
    return None if status else result


def sddmm(dy: torch.Tensor, x: torch.Tensor, pattern: SparsityPattern, backend: str) -> torch.Tensor:
    """Gradient of the values [nnz]: dy [T, O] transposed times x [T, I] at the kept entries."""
    dy, x = dy.contiguous(), x.contiguous()
    result = x.new_empty(pattern.nnz)
    status = _loaded().spdf_grad_values(
        _structure(pattern),
        BACKENDS[backend],
        x.dtype == torch.bfloat16,
        dy.data_ptr(),
        x.data_ptr(),
        x.shape[0],
        result.data_ptr(),
        torch.get_num_threads(),
    )
    if status != 0:
        raise MemoryError(f"no memory for a product with {pattern!r} over {x.shape[0]} tokens")
    return result


def prepare(pattern: SparsityPattern, backend: str, transposed: bool, dtype: torch.dtype) -> str:
    """Prepare a direction before its first product; return the back end that its products will run on."""
    bf16 = dtype == torch.bfloat16
    prepared = _loaded().spdf_prepare(_structure(pattern), BACKENDS[backend], transposed, bf16, torch.get_num_threads())
    if prepared < 0:
        raise MemoryError(f"no memory for the structure of {pattern!r}")
    return next(name for name, number in BACKENDS.items() if number == prepared)


def prepare_sddmm(pattern: SparsityPattern) -> None:
    """Prepare the gradient of the values before its first product."""
    if _loaded().spdf_prepare_grad_values(_structure(pattern)) != 0:
        raise MemoryError(f"no memory for the structure of {pattern!r}")


def held_bytes(pattern: SparsityPattern) -> tuple[int, int]:
    """(bytes of indices, bytes of generated code) that the library holds for a pattern at present."""
    structure = pattern.prepared.get("native")
    if structure is None:
        return 0, 0
    return _loaded().spdf_index_bytes(structure), _loaded().spdf_code_bytes(structure)


def set_code_budget(size: int) -> None:
    """Limit the generated code of all patterns in this process to `size` bytes."""
    if _library is not None:
        _library.spdf_set_code_budget(size)


def _loaded() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError(missing_library)
    return _library


_making = threading.Lock()  # ctypes releases the GIL while the library builds a structure


def _structure(pattern: SparsityPattern) -> int:
    """The library's structure of a pattern; built at the first call, freed with the pattern."""
    structure = pattern.prepared.get("native")
    return _made_structure(pattern) if structure is None else structure


def _made_structure(pattern: SparsityPattern) -> int:
    library = _loaded()
    with _making:
        structure = pattern.prepared.get("native")
        if structure is None:
            structure = library.spdf_pattern_new(pattern.bits.data_ptr(), *pattern.shape, pattern.nnz)
            if not structure:
                raise MemoryError(f"no memory for the structure of {pattern!r}")
            pattern.prepared["native"] = structure
            weakref.finalize(pattern, library.spdf_pattern_free, structure).atexit = False
    return structure
