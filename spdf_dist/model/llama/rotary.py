"""Rotary positions with Llama 3's scaling. Shapes: T tokens, c head size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.llama.architecture import ROPE_THETA


def inverse_frequencies(model: ModelConfig) -> Tensor:
    """The angle by which each pair of features is rotated, in radians per position, fp32 [c / 2]."""
    exponents = torch.arange(0, model.head_size, 2, dtype=torch.float32) / model.head_size
    frequencies = 1.0 / ((model.rope_theta or ROPE_THETA) ** exponents)
    scaling = model.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 0 for wavelengths that are scaled in full, 1 for those that are not scaled, interpolated in 1 / wavelength.
    kept = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs (i, i + c / 2) of the last dimension of ``x`` [..., c] by ``angles`` [..., c / 2] (radians)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
