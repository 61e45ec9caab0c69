"""A plain single-process GPT and its training, written from the definition. Every parallel run must equal it.

Of the trainer, it uses only the initial values and masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LINEARS = ("W_Q", "W_K", "W_V", "W_D", "W_I", "W_O")


def shapes(layers: int, width: int, ffn: int, vocab: int, context: int) -> dict[str, tuple[int, ...]]:
    result: dict[str, tuple[int, ...]] = {"embedding.word": (vocab, width), "embedding.position": (context, width)}
    for i in range(layers):
        for name in LINEARS:
            out, into = {"W_I": (ffn, width), "W_O": (width, ffn)}.get(name, (width, width))
            result[f"layers.{i}.{name}"] = (out, into)
            result[f"layers.{i}.{name.replace('W', 'b')}"] = (out,)
        for norm in ("ln_1", "ln_2"):
            result |= {f"layers.{i}.{norm}.{part}": (width,) for part in ("weight", "bias")}
    return result | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def forward(w: dict[str, Tensor], tokens: Tensor, layers: int, heads: int) -> Tensor:
    """Logits [B, T, V] of token ids [B, T]."""
    x = w["embedding.word"][tokens] + w["embedding.position"][: tokens.shape[1]]
    batch, length, width = x.shape
    causal = torch.full((length, length), -math.inf).triu(1)
    for i in range(layers):
        p = f"layers.{i}."
        h = F.layer_norm(x, (width,), w[p + "ln_1.weight"], w[p + "ln_1.bias"], 1e-5)
        q, k, v = (
            (h @ w[p + f"W_{n}"].T + w[p + f"b_{n}"]).view(batch, length, heads, -1).transpose(1, 2) for n in "QKV"
        )
        attention = ((q @ k.transpose(2, 3)) / math.sqrt(width / heads) + causal).softmax(-1)
        h = (attention @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + h @ w[p + "W_D"].T + w[p + "b_D"]
        h = F.layer_norm(x, (width,), w[p + "ln_2.weight"], w[p + "ln_2.bias"], 1e-5)
        h = h @ w[p + "W_I"].T + w[p + "b_I"]
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ w[p + "W_O"].T + w[p + "b_O"]
    x = F.layer_norm(x, (width,), w["ln_f.weight"], w["ln_f.bias"], 1e-5)
    return x @ w["embedding.word"].T


def orthogonal(g: Tensor) -> Tensor:
    """Muon's five Newton-Schulz iterations, as a polynomial of the singular values in float64."""
    u, s, v = torch.linalg.svd(g.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s @ v).to(g)


def train(
    initial: dict[str, Tensor],
    masks: dict[str, Tensor],
    batches: list[Tensor],
    *,
    layers: int = 0,
    heads: int = 0,
    lrs: list[float],
    weight_decay: float,
    clip: float,
    network: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum: float | None = None,
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """AdamW on whole batches [B, T + 1]. Returns losses, gradient norms before clipping, and final weights.

    With ``momentum`` the matrices of the layers are updated by Muon.

    ``network`` computes logits from weights and token ids. The default is the GPT of ``layers`` and ``heads``.
    """
    w = {name: (value * masks[name] if name in masks else value).clone() for name, value in initial.items()}
    first = {name: torch.zeros_like(value) for name, value in w.items()}
    second = {name: torch.zeros_like(value) for name, value in w.items()}
    losses, norms = [], []
    for step, (ids, lr) in enumerate(zip(batches, lrs, strict=True), start=1):
        leaves = {name: value.detach().requires_grad_() for name, value in w.items()}
        logits = network(leaves, ids[:, :-1]) if network else forward(leaves, ids[:, :-1], layers, heads)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        gradients = {name: g * masks[name] if name in masks else g for name, g in gradients.items()}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        losses.append(float(loss))
        norms.append(norm)
        factor = min(1.0, clip / norm) if clip else 1.0
        for name, g in gradients.items():
            g = g * factor
            if momentum is not None and ".W_" in name:
                first[name] = momentum * first[name] + (1 - momentum) * g
                update = orthogonal((1 - momentum) * g + momentum * first[name])
                update = torch.where(masks[name], update, 0) if name in masks else update
                w[name] = w[name] * (1 - lr * weight_decay) - lr * 0.2 * max(g.shape) ** 0.5 * update
                continue
            first[name] = betas[0] * first[name] + (1 - betas[0]) * g
            second[name] = betas[1] * second[name] + (1 - betas[1]) * g * g
            decay = weight_decay if g.dim() == 2 else 0.0
            update = (first[name] / (1 - betas[0] ** step)) / ((second[name] / (1 - betas[1] ** step)).sqrt() + eps)
            w[name] = w[name] * (1 - lr * decay) - lr * update
    return losses, norms, w
