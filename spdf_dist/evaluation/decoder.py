"""Inference in one process, from the dense global weights of a checkpoint of any family.

The model computes the same function as the training model (``spdf_dist.model``), without process groups. A prompt is
computed once, and all beams of an input share its keys and values. Beams are never copied: the keys and values of each
step remain where they were written, and the attention bias of a beam selects its own ancestors.

Shapes: N inputs, B beams, P prompt length (padded), S generated steps, K keys, T tokens, V vocabulary entries, h query
heads, g key-value heads, c head size, d = h * c hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spdf_dist.config.errors import NonFiniteError
from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.architecture import family_module


class InferenceModel(Protocol):
    """The parts of a family's forward pass. ``positions`` are [T], or [N, 1] where all tokens of an input share one."""

    layers: Sequence[Any]
    """The weights of each layer."""

    def embed(self, tokens_NT: Tensor, positions: Tensor) -> Tensor:
        """Embeddings [N, T, d] of tokens [N, T]."""

    def attention_inputs(self, layer: Any, x_NTd: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, h, T, c], keys and values [N, g, T, c]. h is a multiple of g."""

    def finish(self, layer: Any, x_NTd: Tensor, attended_NTd: Tensor) -> Tensor:
        """The layer's output [N, T, d], from its input and the concatenated outputs of the heads, both [N, T, d]."""

    def logits(self, x: Tensor) -> Tensor:
        """Logits, fp32 [..., V], of hidden states [..., d]."""


class Cache:
    """Keys and values of N inputs: P for the prompt, then B for each generated step, with space for S steps."""

    def __init__(
        self, lengths_N: Tensor, prompt_kv: Sequence[tuple[Tensor, Tensor]], beams: int, max_steps: int
    ) -> None:
        keys = prompt_kv[0][0]
        inputs, heads, self.prompt, head = keys.shape
        self.beams = beams
        self.steps = 0
        self.lengths_N = lengths_N
        padding = torch.arange(self.prompt, device=keys.device) >= lengths_N[:, None]
        self.prompt_bias_NBP = (
            keys.new_zeros(padding.shape).masked_fill_(padding, -torch.inf)[:, None].repeat(1, beams, 1)
        )
        """0 where the prompt has a token, -inf at its padding."""
        self.ancestry_NBS = torch.zeros((inputs, beams, max_steps), dtype=torch.int64, device=keys.device)
        """The slot (0 to B - 1) of a beam's own token at each step."""
        self.kv: list[tuple[Tensor, Tensor]] = []
        """Per layer: keys and values [N, g, P + S * B, c], of which the first P + steps * B are filled."""
        shape = (inputs, heads, self.prompt + max_steps * beams, head)
        for pair in prompt_kv:
            spaces = keys.new_empty(shape), keys.new_empty(shape)
            for space, prompt in zip(spaces, pair, strict=True):
                space[:, :, : self.prompt] = prompt
            self.kv.append(spaces)

    @property
    def filled(self) -> int:
        """Number of filled keys per input."""
        return self.prompt + self.steps * self.beams

    def begin_step(self) -> None:
        """Extend the cache by one token per beam. Each beam's own slot is its index."""
        self.ancestry_NBS[:, :, self.steps] = torch.arange(self.beams, device=self.ancestry_NBS.device)
        self.steps += 1

    def bias(self) -> Tensor:
        """[N, 1, B, filled]: 0 at the prompt and at a beam's own tokens, -inf at padding and other beams' tokens."""
        slots = torch.arange(self.beams, device=self.ancestry_NBS.device)
        others = self.ancestry_NBS[:, :, : self.steps, None] != slots
        past = self.prompt_bias_NBP.new_zeros(others.shape).masked_fill_(others, -torch.inf)
        return torch.cat([self.prompt_bias_NBP, past.flatten(2)], dim=-1)[:, None]

    def reorder(self, beams_NB: Tensor) -> None:
        """Make beam b of input n the continuation of beam ``beams_NB[n, b]``."""
        index = beams_NB[:, :, None].expand(-1, -1, self.steps)
        self.ancestry_NBS[:, :, : self.steps] = self.ancestry_NBS[:, :, : self.steps].gather(1, index)

    def keep(self, inputs: Tensor) -> None:
        """Keep only the inputs ``inputs`` (int64 [n])."""
        self.lengths_N = self.lengths_N[inputs]
        self.prompt_bias_NBP = self.prompt_bias_NBP[inputs]
        self.ancestry_NBS = self.ancestry_NBS[inputs]
        self.kv = [(keys[inputs], values[inputs]) for keys, values in self.kv]


class Decoder:
    """A model in evaluation mode.

    Args:
        model: the architecture.
        weights: every global tensor, dense, by its name in the family's ``architecture.py``.
        device: device of the computation.
        dtype: dtype of the computation.
        words: number of token ids, from 0, that may be generated; None: all.

    Raises:
        KeyError: a weight is missing.
    """

    def __init__(
        self,
        model: ModelConfig,
        weights: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        words: int | None = None,
    ) -> None:
        def get(name: str) -> Tensor:
            return weights[name].to(device=device, dtype=dtype)

        self.model = model
        self.words = words
        self.device = torch.device(device)
        self.network: InferenceModel = family_module(model.family, "inference").InferenceModel(model, get)

    @torch.inference_mode()
    def logits(self, tokens_NT: Tensor) -> Tensor:
        """Logits of the next token at every position, [N, T, V]. T is at most the context window.

        Raises NonFiniteError for NaN.
        """
        return check_logits(self.network.logits(self._read(tokens_NT, [])))

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], beams: int, max_steps: int) -> tuple[Cache, Tensor]:
        """Compute prompts of any lengths of at least one token.

        Returns:
            a cache for ``beams`` beams per input and up to ``max_steps`` steps; the logits after each prompt [N, V].
        """
        lengths_N = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        longest = int(lengths_N.max())
        # Padding is at the end. Causal attention hides it from the prompt, and prompt_bias from generated tokens.
        tokens_NP = torch.tensor(
            [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], dtype=torch.int64, device=self.device
        )
        prompt_kv: list[tuple[Tensor, Tensor]] = []
        hidden_NPd = self._read(tokens_NP, prompt_kv)
        last_Nd = hidden_NPd[torch.arange(len(prompts), device=self.device), lengths_N - 1]
        return Cache(lengths_N, prompt_kv, beams, max_steps), self._next(last_Nd)

    @torch.inference_mode()
    def step(self, tokens_NB: Tensor, cache: Cache) -> Tensor:
        """Append one token (int64 [N, B]) to every beam, and return the logits of the next token, [N, B, V]."""
        # A finished input may remain in the batch beyond the context window. Its outputs there are not used.
        positions_N1 = (cache.lengths_N + cache.steps).clamp(max=self.model.seq_length - 1)[:, None]
        start = cache.filled
        beams = tokens_NB.shape[1]
        cache.begin_step()
        bias_N1BK = cache.bias()
        x_NBd = self.network.embed(tokens_NB, positions_N1)
        for layer, (keys, values) in zip(self.network.layers, cache.kv, strict=True):
            q, k, v = self.network.attention_inputs(layer, x_NBd, positions_N1)
            keys[:, :, start : start + beams], values[:, :, start : start + beams] = k, v
            seen = slice(0, cache.filled)
            attended = attend(q, keys[:, :, seen], values[:, :, seen], bias_N1BK)
            x_NBd = self.network.finish(layer, x_NBd, attended)
        return self._next(x_NBd)

    def _read(self, tokens_NT: Tensor, keys_values: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Hidden states [N, T, d] of whole sequences. The keys and values of every layer are appended to the list."""
        positions_T = torch.arange(tokens_NT.shape[1], device=self.device)
        x_NTd = self.network.embed(tokens_NT, positions_T)
        for layer in self.network.layers:
            q, k, v = self.network.attention_inputs(layer, x_NTd, positions_T)
            keys_values.append((k, v))
            x_NTd = self.network.finish(layer, x_NTd, attend(q, k, v, None))
        return x_NTd

    def _next(self, x: Tensor) -> Tensor:
        logits = check_logits(self.network.logits(x))
        if self.words is not None:
            logits[..., self.words :] = -torch.inf
        return logits


def check_logits(logits: Tensor) -> Tensor:
    """Return ``logits`` [..., V]. Raises NonFiniteError when a hidden state was NaN, which makes its logits NaN."""
    if logits[..., 0].isnan().any():
        raise NonFiniteError("the model's outputs are NaN: its weights overflow in the computation")
    return logits


def attend(q_NhTc: Tensor, k_NgKc: Tensor, v_NgKc: Tensor, bias: Tensor | None) -> Tensor:
    """Attention with ``bias``, or causal attention without one. Returns the concatenated heads, [N, T, d]."""
    y_NhTc = F.scaled_dot_product_attention(
        q_NhTc,
        k_NgKc,
        v_NgKc,
        attn_mask=bias,
        is_causal=bias is None,
        enable_gqa=q_NhTc.shape[1] != k_NgKc.shape[1],
    )
    return y_NhTc.transpose(1, 2).flatten(2)
