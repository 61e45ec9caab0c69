"""A GPT for inference, in one process, from the dense global weights of a checkpoint.

The same function as the model that trains (``spdf_dist.model``), without process groups. What is special is the cache:
prompts are computed once and shared by all beams of an input, and beams are never copied. Each step's keys and values
stay where they were written, and a beam finds its own past among them by its ancestry.

Shapes: N inputs, B beams, P prompt length (padded), S generated steps, T tokens, V words, h heads, c head size,
d = h * c hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass
class Cache:
    """Keys and values of N inputs: their prompts, and B beams a generated step."""

    lengths_N: Tensor
    """Prompt tokens of each input."""
    prompt_bias_N11P: Tensor
    """0 where the prompt has a token, -inf at its padding."""
    prompt_kv: list[tuple[Tensor, Tensor]]
    """A layer: keys and values [N, h, P, c]."""
    step_kv: list[tuple[Tensor, Tensor]]
    """A layer: keys and values [N, h, S, B, c], of which the first ``steps`` are filled."""
    ancestry_NBS: Tensor
    """Which slot beam b's own token has at each filled step."""
    steps: int = 0
    _all: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._all = torch.arange(self.ancestry_NBS.shape[1], device=self.lengths_N.device)

    def reorder(self, beams_NB: Tensor) -> None:
        """Make beam b go on from what was beam ``beams_NB[n, b]``."""
        index = beams_NB[:, :, None].expand(-1, -1, self.steps)
        self.ancestry_NBS[:, :, : self.steps] = self.ancestry_NBS[:, :, : self.steps].gather(1, index)

    def keep(self, inputs: Tensor) -> None:
        """Drop all inputs but ``inputs`` (int64 [n])."""
        self.lengths_N = self.lengths_N[inputs]
        self.prompt_bias_N11P = self.prompt_bias_N11P[inputs]
        self.prompt_kv = [(k[inputs], v[inputs]) for k, v in self.prompt_kv]
        self.step_kv = [(k[inputs], v[inputs]) for k, v in self.step_kv]
        self.ancestry_NBS = self.ancestry_NBS[inputs]

    def step_bias(self) -> Tensor:
        """[N, 1, B, steps * B]: 0 where a beam sees its own past, -inf at the others' tokens."""
        own = self.ancestry_NBS[:, :, : self.steps, None] == self._all
        bias = torch.full(own.shape, -torch.inf, dtype=self.prompt_bias_N11P.dtype, device=own.device)
        return bias.masked_fill_(own, 0.0).flatten(2)[:, None]


class Decoder:
    """A pre-norm GPT-2 with learned positions, tanh GELU and tied output, in evaluation mode.

    Args:
        model: the architecture.
        weights: every global tensor, dense (names in ``spdf_dist.parallel.layout``).
        device: where to compute.
        dtype: in which precision.

    Raises:
        KeyError: a weight is missing.
    """

    def __init__(
        self,
        model: ModelConfig,
        weights: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        def get(name: str) -> Tensor:
            return weights[name].to(device=device, dtype=dtype)

        self.model = model
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
        padding = torch.arange(longest, device=self.device)[None] >= lengths_N[:, None]
        bias = torch.zeros(padding.shape, dtype=hidden_NPd.dtype, device=self.device).masked_fill_(padding, -torch.inf)
        head = self.model.hidden_size // self.heads
        shape = (len(prompts), self.heads, max_steps, beams, head)
        cache = Cache(
            lengths_N=lengths_N,
            prompt_bias_N11P=bias[:, None, None],
            prompt_kv=prompt_kv,
            step_kv=[(self.words_Vd.new_empty(shape), self.words_Vd.new_empty(shape)) for _ in self.layers],
            ancestry_NBS=torch.zeros((len(prompts), beams, max_steps), dtype=torch.int64, device=self.device),
        )
        return cache, self._output(last_Nd)

    @torch.inference_mode()
    def step(self, tokens_NB: Tensor, cache: Cache) -> Tensor:
        """Append one token to every beam; the logits of the next, [N, B, V]."""
        inputs, beams = tokens_NB.shape
        at = cache.steps
        cache.ancestry_NBS[:, :, at] = torch.arange(beams, device=self.device)
        cache.steps += 1
        step_bias = cache.step_bias()
        x_NBd = self.words_Vd[tokens_NB] + self.positions_Td[cache.lengths_N + at][:, None]
        for layer, (prompt_k, prompt_v), (step_k, step_v) in zip(
            self.layers, cache.prompt_kv, cache.step_kv, strict=True
        ):
            q, k, v = self._heads(layer, x_NBd)
            step_k[:, :, at], step_v[:, :, at] = k, v
            past_k, past_v = (t[:, :, : cache.steps].flatten(2, 3) for t in (step_k, step_v))
            q = q * q.shape[-1] ** -0.5
            scores = torch.cat(
                [q @ prompt_k.mT + cache.prompt_bias_N11P, q @ past_k.mT + step_bias],
                dim=-1,
            ).softmax(-1)
            width = prompt_k.shape[2]
            mixed_NhBc = scores[..., :width] @ prompt_v + scores[..., width:] @ past_v
            x_NBd = x_NBd + F.linear(mixed_NhBc.transpose(1, 2).reshape(inputs, beams, -1), *layer.project)
            x_NBd = self._mlp(layer, x_NBd)
        return self._output(x_NBd)

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

    def _output(self, x: Tensor) -> Tensor:
        return F.linear(self._normalize(x, self.norm), self.words_Vd).float()
