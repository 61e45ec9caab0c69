"""A plain single-process Llama, written from the definition. Every parallel run must equal it.

Rotary positions are complex multiplications of the pairs (i, i + half) of each head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def turns(position: int, pair: int, size: int, model: dict) -> complex:
    """The rotation of one pair of features at a position."""
    angle = model.get("rope_theta", 10_000.0) ** (-2 * pair / size)
    scaling = model.get("rope_scaling")
    if scaling:
        context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        rounds = context * angle / (2 * math.pi)  # in the original context
        if rounds < low:
            angle /= factor
        elif rounds < high:
            smooth = (rounds - low) / (high - low)
            angle = (1 - smooth) * angle / factor + smooth * angle
    return complex(math.cos(position * angle), math.sin(position * angle))


def rotated(x: Tensor, model: dict) -> Tensor:
    """x [B, h, T, c]."""
    length, size = x.shape[2:]
    table = torch.tensor([[turns(t, i, size, model) for i in range(size // 2)] for t in range(length)])
    result = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * table.to(torch.complex64)
    return torch.cat([result.real, result.imag], dim=-1)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def forward(w: dict[str, Tensor], tokens: Tensor, model: dict) -> Tensor:
    """Logits [B, T, V] of token ids [B, T]."""
    x = w["embedding.word"][tokens]
    batch, length, width = x.shape
    heads = model["num_attention_heads"]
    causal = torch.full((length, length), -math.inf).triu(1)
    for i in range(model["num_layers"]):
        p = f"layers.{i}."
        h = rms_norm(x, w[p + "ln_1.weight"])
        q, k, v = ((h @ w[p + f"W_{n}"].T).view(batch, length, -1, width // heads).transpose(1, 2) for n in "QKV")
        q, k = rotated(q, model), rotated(k, model)
        mixed = []
        for head in range(heads):
            group = head * k.shape[1] // heads
            scores = q[:, head] @ k[:, group].transpose(1, 2) / math.sqrt(width / heads) + causal
            mixed.append(scores.softmax(-1) @ v[:, group])
        x = x + torch.cat(mixed, dim=-1) @ w[p + "W_D"].T
        h = rms_norm(x, w[p + "ln_2.weight"])
        gate = h @ w[p + "W_G"].T
        x = x + (gate * torch.sigmoid(gate) * (h @ w[p + "W_I"].T)) @ w[p + "W_O"].T
    return rms_norm(x, w["ln_f.weight"]) @ w.get("head.weight", w["embedding.word"]).T
