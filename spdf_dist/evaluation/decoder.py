"""A GPT for inference, in one process, from the dense global weights of a checkpoint.

The same function as the model that trains (``spdf_dist.model``), without process groups. What is special is the cache:
prompts are computed once and shared by all beams of an input, and beams are never copied. Each step's keys and values
stay where they were written, and a beam finds its own past among them by its ancestry.

Shapes: N inputs, B beams, P prompt length (padded), S generated steps, K keys, T tokens, V words, h heads, c head size,
d = h * c hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spdf_dist.config.schema import ModelConfig

NORM_EPS = 1e-5


@dataclass
class Layer:
    """The weights of one layer; Q, K and V stacked."""

    norm_1: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    project: tuple[Tensor, Tensor]
    norm_2: tuple[Tensor, Tensor]
    expand: tuple[Tensor, Tensor]
    contract: tuple[Tensor, Tensor]


class Cache:
    """Keys and values of N inputs: P of their prompts, then B of every generated step, in a space for S steps."""

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
        """Which slot a beam's own token has at each step."""
        self.kv: list[tuple[Tensor, Tensor]] = []
        """A layer: keys and values [N, h, P + S * B, c], of which the first P + steps * B are filled."""
        shape = (inputs, heads, self.prompt + max_steps * beams, head)
        for pair in prompt_kv:
            spaces = keys.new_empty(shape), keys.new_empty(shape)
            for space, prompt in zip(spaces, pair, strict=True):
                space[:, :, : self.prompt] = prompt
            self.kv.append(spaces)

    @property
    def filled(self) -> int:
        """Keys an input has."""
        return self.prompt + self.steps * self.beams

    def begin_step(self) -> None:
        """Make room for one token of every beam."""
        self.ancestry_NBS[:, :, self.steps] = torch.arange(self.beams, device=self.ancestry_NBS.device)
        self.steps += 1

    def bias(self) -> Tensor:
        """[N, 1, B, filled]: 0 where a beam sees its prompt and its own past, -inf at padding and others' tokens."""
        slots = torch.arange(self.beams, device=self.ancestry_NBS.device)
        others = self.ancestry_NBS[:, :, : self.steps, None] != slots
        past = self.prompt_bias_NBP.new_zeros(others.shape).masked_fill_(others, -torch.inf)
        return torch.cat([self.prompt_bias_NBP, past.flatten(2)], dim=-1)[:, None]

    def reorder(self, beams_NB: Tensor) -> None:
        """Make beam b go on from what was beam ``beams_NB[n, b]``."""
        index = beams_NB[:, :, None].expand(-1, -1, self.steps)
        self.ancestry_NBS[:, :, : self.steps] = self.ancestry_NBS[:, :, : self.steps].gather(1, index)

    def keep(self, inputs: Tensor) -> None:
        """Drop all inputs but ``inputs`` (int64 [n])."""
        self.lengths_N = self.lengths_N[inputs]
        self.prompt_bias_NBP = self.prompt_bias_NBP[inputs]
        self.ancestry_NBS = self.ancestry_NBS[inputs]
        self.kv = [(keys[inputs], values[inputs]) for keys, values in self.kv]


class Decoder:
    """A pre-norm GPT-2 with learned positions, tanh GELU and tied output, in evaluation mode.

    Args:
        model: the architecture.
        weights: every global tensor, dense (names in ``spdf_dist.parallel.layout``).
        device: where to compute.
        dtype: in which precision.
        words: how many of the model's words may be generated, from the first; None: all.

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
        self.heads = model.num_attention_heads
        self.words_Vd = get("embedding.word")
        self.positions_Td = get("embedding.position")
        self.norm = get("ln_f.weight"), get("ln_f.bias")
        self.layers = []
        for i in range(model.num_layers):
            at = f"layers.{i}."
            self.layers.append(
                Layer(
                    norm_1=(get(f"{at}ln_1.weight"), get(f"{at}ln_1.bias")),
                    qkv=(
                        torch.cat([get(f"{at}W_{x}") for x in "QKV"]),
                        torch.cat([get(f"{at}b_{x}") for x in "QKV"]),
                    ),
                    project=(get(f"{at}W_D"), get(f"{at}b_D")),
                    norm_2=(get(f"{at}ln_2.weight"), get(f"{at}ln_2.bias")),
                    expand=(get(f"{at}W_I"), get(f"{at}b_I")),
                    contract=(get(f"{at}W_O"), get(f"{at}b_O")),
                )
            )

    @torch.inference_mode()
    def logits(self, tokens_NT: Tensor) -> Tensor:
        """Logits of the next token at every position, [N, T, V]; T is at most the context window."""
        return self._output(self._read(tokens_NT, []))

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], beams: int, max_steps: int) -> tuple[Cache, Tensor]:
        """Read prompts of any lengths (each at least one token).

        Returns:
            a cache for ``beams`` beams an input and up to ``max_steps`` steps, and the logits after each prompt [N, V].
        """
        lengths_N = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        longest = int(lengths_N.max())
        # Padding stands at the end: causal attention keeps it out of the prompt, prompt_bias out of what follows.
        tokens_NP = torch.tensor(
            [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], dtype=torch.int64, device=self.device
        )
        prompt_kv: list[tuple[Tensor, Tensor]] = []
        hidden_NPd = self._read(tokens_NP, prompt_kv)
        last_Nd = hidden_NPd[torch.arange(len(prompts), device=self.device), lengths_N - 1]
        return Cache(lengths_N, prompt_kv, beams, max_steps), self._next(last_Nd)

    @torch.inference_mode()
    def step(self, tokens_NB: Tensor, cache: Cache) -> Tensor:
        """Append one token to every beam; the logits of the next, [N, B, V]."""
        inputs, beams = tokens_NB.shape
        # An input that is done may stay in the batch past the window; what it gets there is not read.
        position_N = (cache.lengths_N + cache.steps).clamp(max=len(self.positions_Td) - 1)
        start = cache.filled
        cache.begin_step()
        bias_N1BK = cache.bias()
        x_NBd = self.words_Vd[tokens_NB] + self.positions_Td[position_N][:, None]
        for layer, (keys, values) in zip(self.layers, cache.kv, strict=True):
            q, k, v = self._heads(layer, x_NBd)
            keys[:, :, start : start + beams], values[:, :, start : start + beams] = k, v
            seen = slice(0, cache.filled)
            mixed = F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen], attn_mask=bias_N1BK)
            x_NBd = x_NBd + F.linear(mixed.transpose(1, 2).reshape(inputs, beams, -1), *layer.project)
            x_NBd = self._mlp(layer, x_NBd)
        return self._next(x_NBd)

    def _read(self, tokens_NT: Tensor, keys_values: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Hidden states [N, T, d] of whole sequences; every layer's keys and values are appended to the list."""
        x_NTd = self.words_Vd[tokens_NT] + self.positions_Td[: tokens_NT.shape[1]]
        for layer in self.layers:
            q, k, v = self._heads(layer, x_NTd)
            keys_values.append((k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x_NTd = x_NTd + F.linear(mixed.transpose(1, 2).flatten(2), *layer.project)
            x_NTd = self._mlp(layer, x_NTd)
        return x_NTd

    def _heads(self, layer: Layer, x_NTd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [N, h, T, c]."""
        qkv = F.linear(self._normalize(x_NTd, layer.norm_1), *layer.qkv)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(self._normalize(x, layer.norm_2), *layer.expand), approximate="tanh")
        return x + F.linear(hidden, *layer.contract)

    def _normalize(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm, eps=NORM_EPS)

    def _next(self, x: Tensor) -> Tensor:
        logits = self._output(x)
        if self.words is not None:
            logits[..., self.words :] = -torch.inf
        return logits

    def _output(self, x: Tensor) -> Tensor:
        return F.linear(self._normalize(x, self.norm), self.words_Vd).float()
