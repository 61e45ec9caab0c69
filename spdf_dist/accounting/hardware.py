"""Data-sheet figures of accelerators, for MFU and the estimator.

Rates are dense, without the factor of structured sparsity. They are those of SXM parts where there are several parts.
GB and GB/s are decimal, as in the data sheets.
"""

from __future__ import annotations

from dataclasses import dataclass

from spdf_dist.config.errors import UserError
from spdf_dist.config.suggest import nearest


@dataclass(frozen=True)
class Gpu:
    """One accelerator."""

    name: str
    bf16_flops: float
    """Peak dense bf16 tensor rate, FLOP/s."""
    fp32_flops: float
    """Peak fp32 rate without tensor cores, FLOP/s."""
    memory_bytes: float
    memory_bandwidth: float
    """Memory bandwidth, bytes/s."""
    link_bandwidth: float
    """NVLink, bytes/s per GPU and direction."""

    def peak(self, precision: str) -> float:
        """Peak FLOP/s at ``fp32`` or ``bf16``."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


GPUS = {
    "a100-40gb": Gpu("A100 40GB", 312e12, 19.5e12, 40e9, 1555e9, 300e9),
    "a100": Gpu("A100 80GB", 312e12, 19.5e12, 80e9, 2039e9, 300e9),
    "h100": Gpu("H100", 989e12, 67e12, 80e9, 3350e9, 450e9),
    "h200": Gpu("H200", 989e12, 67e12, 141e9, 4800e9, 450e9),
    "b200": Gpu("B200", 2250e12, 75e12, 180e9, 7700e9, 900e9),
}


def find_gpu(name: str) -> Gpu:
    """The accelerator of that name. Raises UserError for an unknown name."""
    key = name.lower()
    if key not in GPUS:
        raise UserError(f"--gpu: '{name}' is not known{nearest(key, GPUS)} (one of {', '.join(GPUS)})")
    return GPUS[key]


def recognise_gpu(device_name: str) -> Gpu | None:
    """The accelerator with a driver's device name, such as 'NVIDIA H100 80GB HBM3'; None when unknown."""
    words = device_name.upper().replace("-", " ").split()
    if "PCIE" in words:
        return None  # its peaks differ from those of the SXM part of the same name
    for gpu in GPUS.values():
        if all(word in words or f"SXM4 {word}" in device_name for word in gpu.name.upper().split()):
            return gpu
    for gpu in GPUS.values():
        if gpu.name.upper().split()[0] in words:
            return gpu
    return None
