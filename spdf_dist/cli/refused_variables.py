"""Environment variables whose value a library refuses: one line that names the variable.

Most libraries raise an error, which ``refused_variable`` recognizes. ``check_variables`` checks the values on which
libgomp or torch hang in native code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from spdf_dist.config.errors import UserError, causes

PREFIXES = (
    *("TORCH", "PYTORCH", "GLOO", "NCCL", "CUDA", "CUBLAS", "TRITON", "TP_", "UCC_", "C10D"),
    *("DS_", "DEEPSPEED", "OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "ATEN_", "USE_", "LOCAL_", "MASTER_"),
)
"""Beginnings of the names of variables that the libraries read."""
BY_MESSAGE = {
    "unsupported gloo device": ("GLOO_DEVICE_TRANSPORT",),
    "Invalid log settings": ("TORCH_LOGS",),
    "CachingAllocator option": ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
}
"""Messages that do not name their variable or, as that of TORCH_LOGS, name it only in a hint."""
NO_NUMBER = re.compile(r"(?:invalid literal for int\(\) with base \d+|could not convert string to float): '(.*)'")
_CPUS = r"\d+(-\d+(:\d+)?)?"
_NUMBER = (r"\s*[+-]?\d{1,9}", "a number")
_SWITCH = (r"(?i:y|yes|t|true|1|n|no|f|false|0)", "1 or 0")
HANGING: dict[str, tuple[str, str]] = {
    "GOMP_CPU_AFFINITY": (rf"\s*({_CPUS}([\s,]+{_CPUS})*\s*)?", "a list of CPUs such as 0-3 or 0 2 4"),
    "TORCH_FR_BUFFER_SIZE": _NUMBER,
    "TORCH_NCCL_TRACE_BUFFER_SIZE": _NUMBER,
    "TORCH_FR_CPP_STACK": _SWITCH,
    "TORCH_NCCL_TRACE_CPP_STACK": _SWITCH,
}
"""Pattern and description of the values of variables on whose other values libgomp or torch hang."""


def check_variables(env: Mapping[str, str] = os.environ) -> None:
    """Raise UserError if ``env`` has a variable on whose value the import of torch, or its first collective, hangs."""
    for name, (pattern, meaning) in HANGING.items():
        if name in env and not re.fullmatch(pattern, env[name], re.ASCII):
            raise UserError(f"{name}={env[name]}: not {meaning}: correct or unset this environment variable")


def refused_variable(error: BaseException, env: Mapping[str, str] = os.environ) -> str | None:
    """The variable of ``env`` that a library refuses in ``error`` or its causes, in one line; None for other errors.

    A variable that a message only recommends, such as ``NCCL_DEBUG=INFO``, is not refused.
    """
    names = sorted((name for name in env if name.startswith(PREFIXES)), key=len, reverse=True)
    for each in causes(error):
        text = str(each)
        name = next((name for sign, those in BY_MESSAGE.items() if sign in text for name in those if name in env), None)
        name = name or next((name for name in names if is_refused(name, text)), None)
        if name is None and (value := NO_NUMBER.search(text)):
            name = next((name for name in names if env[name] == value[1]), None)
        if name is not None:
            words = " ".join(text.split())
            return f"{name}={env[name]}: {words:.200}: correct or unset this environment variable"
    return None


def is_refused(name: str, text: str) -> bool:
    """Whether ``text`` says that the value of the variable ``name`` is wrong."""
    named = rf"\b{re.escape(name)}\b(?!=)"
    verdict = r"['\"`]?( environment)?( variable)?( value)? (must|should|is not|was not|has to|needs to|cannot|to be)\b"
    complaint = r"(environment variable|value of|value for|[Ii]nvalid|[Uu]nknown|[Uu]nrecognized|[Uu]nsupported)"
    return re.search(rf"{named}{verdict}|{complaint}[^.\n]{{0,40}}{named}", text) is not None
