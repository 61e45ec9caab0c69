"""Text generation: greedy, by sampling, or by beam search as in transformers.

The result of an input does not depend on the other inputs of its batch or on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spdf_dist.base.random_streams import philox
from spdf_dist.evaluation.decoder import Decoder

NEVER = -1e9
"""A score below that of every sequence. It is finite, so that differences are not NaN."""

COMPACT_AT = 0.75
"""Finished inputs leave the batch only when at most this share of it is open, because removal copies the cache."""


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of decoding. The defaults are those of LoRA for E2E (Hu et al., 2022)."""

    max_new_tokens: int = 64
    beams: int = 10
    """1: greedy decoding or sampling."""
    length_penalty: float = 0.8
    """Beam search ranks finished sequences by log-probability / (generated tokens) ** length_penalty."""
    no_repeat_ngram: int = 4
    """No sequence of this many tokens occurs twice; 0: off."""
    ngrams_of_prompt: bool = True
    """Whether n-grams of the prompt count too, as in transformers. LoRA counts only generated tokens."""
    sample: bool = False
    """Sample from the distribution instead of taking the most likely token; needs beams = 1."""
    temperature: float = 1.0
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together have this probability."""
    seed: int = 0


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    end_ids: Sequence[int],
    settings: GenerationSettings,
    batch_size: int = 32,
    progress: Callable[[int], object] = lambda count: None,
) -> list[list[int]]:
    """Continue each prompt until one of ``end_ids``, ``max_new_tokens``, or the end of the context window.

    Args:
        decoder: the model.
        prompts: token ids. Each prompt has at least one token and fewer than the context window.
        end_ids: tokens that end a text.
        settings: settings of decoding.
        batch_size: number of inputs per batch. Prompts are sorted by length first.
        progress: called with the number of inputs of each finished batch.

    Returns:
        the generated ids of each prompt, in the order of the prompts, without the end token.

    Raises:
        ValueError: a prompt is empty, or does not fit the context window.
        NonFiniteError: the outputs of the model are NaN.
    """
    window = decoder.model.seq_length
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < window:
            raise ValueError(f"prompt {number} has {len(prompt)} tokens; it needs 1 to {window - 1}")
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [prompts[number] for number in chosen]
        if settings.beams > 1:
            texts = beam_search(decoder, batch, end_ids, settings)
        else:
            texts = continue_single(decoder, batch, chosen, end_ids, settings)
        for number, ids in zip(chosen, texts, strict=True):
            results[number] = ids[:-1] if ids and ids[-1] in end_ids else ids
        progress(len(chosen))
    return results


def limits(decoder: Decoder, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[int]:
    """The maximum number of generated tokens of each prompt."""
    return [min(settings.max_new_tokens, decoder.model.seq_length - len(prompt)) for prompt in prompts]


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Prompts, int64 [N, P], padded at the start with -1, which is not a token."""
    longest = max(map(len, prompts))
    return torch.tensor([[-1] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)


def ban_repeats(scores_RV: Tensor, history_RT: Tensor, size: int) -> None:
    """Set to -inf, in place, the tokens that would repeat an n-gram of ``size`` tokens of the row's history."""
    length = history_RT.shape[1]
    if size == 0 or length < size:
        return
    if size == 1:
        seen = torch.ones_like(history_RT, dtype=torch.bool)
    else:
        last = history_RT[:, None, length - size + 1 :]
        seen = (history_RT.unfold(1, size - 1, 1)[:, :-1] == last).all(-1)
    rows, at = seen.nonzero(as_tuple=True)
    tokens = history_RT[rows, at + size - 1]
    real = tokens >= 0
    scores_RV[rows[real], tokens[real]] = -torch.inf


def history(prompts_NP: Tensor, sequences_NBT: Tensor, settings: GenerationSettings) -> Tensor:
    """The tokens in which n-grams are counted, [N * B, T]."""
    if settings.ngrams_of_prompt:
        prompts = prompts_NP[:, None].expand(-1, sequences_NBT.shape[1], -1)
        sequences_NBT = torch.cat([prompts, sequences_NBT], dim=-1)
    return sequences_NBT.flatten(0, 1)


def continue_single(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    end_ids: Sequence[int],
    settings: GenerationSettings,
) -> list[list[int]]:
    """Greedy or sampled continuations. ``numbers`` are the inputs' global numbers, which key their random streams."""
    ends = torch.tensor(list(end_ids), device=decoder.device)
    prompts_NP = left_padded(prompts, decoder.device)
    most = limits(decoder, prompts, settings)
    uniform_NS = uniform(settings.seed, numbers, max(most)).to(decoder.device) if settings.sample else None
    limit_N = torch.tensor(most, device=decoder.device)
    cache, logits_NV = decoder.prefill(prompts, 1, max(most))
    tokens_NS = torch.empty((len(prompts), 0), dtype=torch.int64, device=decoder.device)
    done_N = torch.zeros(len(prompts), dtype=torch.bool, device=decoder.device)
    for step in range(max(most)):
        ban_repeats(logits_NV, history(prompts_NP, tokens_NS[:, None], settings), settings.no_repeat_ngram)
        if uniform_NS is None:
            next_N = logits_NV.argmax(-1)
        else:
            next_N = draw(logits_NV, uniform_NS[:, step], settings)
        tokens_NS = torch.cat([tokens_NS, next_N[:, None]], dim=1)
        done_N |= torch.isin(next_N, ends) | limit_N.eq(step + 1)
        if done_N.all():
            break
        logits_NV = decoder.step(next_N[:, None], cache)[:, 0]
    return [until_end(row[:limit], end_ids) for row, limit in zip(tokens_NS.tolist(), most, strict=True)]


def until_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    """``ids`` up to and including the first end token."""
    at = next((at for at, token in enumerate(ids) if token in end_ids), len(ids))
    return ids[: at + 1]


def uniform(seed: int, numbers: Sequence[int], steps: int) -> Tensor:
    """One number in [0, 1) per input and step, float64 [N, S], keyed by the seed and the input's number.

    The numbers of a step do not depend on ``steps``.
    """
    rows = []
    for number in numbers:
        rows.append((philox(f"sampling/{seed}/{number}", steps) >> np.uint64(11)) * 2.0**-53)
    return torch.from_numpy(np.stack(rows))


def draw(logits_NV: Tensor, uniform_N: Tensor, settings: GenerationSettings) -> Tensor:
    """One token per row, int64 [N]: temperature, top_k, top_p, then inversion of the distribution at ``uniform_N``."""
    ranked_NV, tokens_NV = (logits_NV.double() / settings.temperature).sort(dim=-1, descending=True, stable=True)
    if settings.top_k:
        ranked_NV[:, settings.top_k :] = -torch.inf
    probabilities_NV = ranked_NV.softmax(-1)
    before_NV = probabilities_NV.cumsum(-1) - probabilities_NV
    kept_NV = before_NV < settings.top_p
    kept_NV[:, 0] = True
    summed_NV = (probabilities_NV * kept_NV).cumsum(-1)
    chosen_N1 = torch.searchsorted(summed_NV, uniform_N[:, None] * summed_NV[:, -1:], right=True)
    # Rounding may exceed the sum. Then the last token with a positive probability is taken.
    last_N1 = (kept_NV & (probabilities_NV > 0)).sum(-1, keepdim=True) - 1
    return tokens_NV.gather(1, torch.minimum(chosen_N1, last_N1))[:, 0]


class Beams:
    """The state of a beam search over N inputs with B beams, after t tokens. Finished inputs can be removed."""

    def __init__(self, prompts: Sequence[Sequence[int]], most: Sequence[int], beams: int, device: torch.device) -> None:
        count = len(prompts)
        self.inputs_N = torch.arange(count, device=device)
        self.limit_N = torch.tensor(most, device=device)
        self.open_N = torch.ones(count, dtype=torch.bool, device=device)
        self.prompts_NP = left_padded(prompts, device)
        self.sequences_NBt = torch.empty((count, beams, 0), dtype=torch.int64, device=device)
        # All beams are equal at the start. Therefore only the first may continue at the first step.
        self.scores_NB = torch.full((count, beams), NEVER, device=device)
        self.scores_NB[:, 0] = 0.0
        self.finished_NBS = torch.full((count, beams, max(most)), -1, dtype=torch.int64, device=device)
        self.finished_scores_NB = torch.full((count, beams), NEVER, device=device)
        self.is_finished_NB = torch.zeros((count, beams), dtype=torch.bool, device=device)

    def keep(self, rows: Tensor) -> None:
        """Keep only the inputs ``rows`` (int64 [n])."""
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


def beam_search(
    decoder: Decoder, prompts: Sequence[Sequence[int]], end_ids: Sequence[int], settings: GenerationSettings
) -> list[list[int]]:
    """The best sequence of each prompt, including its end token.

    The search equals transformers' ``generate`` with ``early_stopping=False``. Each step considers the best
    (1 + number of end tokens) * B continuations of all beams. Continuations that end are finished, with their length
    penalty, if they are among the first B. The best B continuations that do not end continue. An input is done when B
    sequences are finished and the best running sequence, at its present length, does not score higher than the worst
    finished one. At the limit of generated tokens, running sequences count as finished.
    """
    device = decoder.device
    ends = torch.tensor(list(end_ids), device=device)
    candidates = max(2, 1 + len(end_ids)) * settings.beams
    results: list[list[int]] = [[] for _ in prompts]
    most = limits(decoder, prompts, settings)
    state = Beams(prompts, most, settings.beams, device)
    cache, logits_NV = decoder.prefill(prompts, settings.beams, max(most))
    logits_NBV = logits_NV[:, None].expand(-1, settings.beams, -1)
    for step in range(1, max(most) + 1):
        beams_NB, tokens_NB = advance(state, logits_NBV, ends, candidates, step, settings)
        done_N = state.open_N & (is_done(state, step, settings.length_penalty) | state.limit_N.eq(step))
        collect(state, done_N, results, end_ids)
        state.open_N = state.open_N & ~done_N
        still_open = int(state.open_N.sum())
        if still_open == 0:
            break
        cache.reorder(beams_NB)
        if still_open <= COMPACT_AT * len(state.open_N):
            rows = state.open_N.nonzero()[:, 0]
            state.keep(rows)
            cache.keep(rows)
            tokens_NB = tokens_NB[rows]
        logits_NBV = decoder.step(tokens_NB, cache)
    return results


def advance(
    state: Beams, logits_NBV: Tensor, ends: Tensor, candidates: int, step: int, settings: GenerationSettings
) -> tuple[Tensor, Tensor]:
    """Make step ``step`` (from 1) in ``state``. Returns the continued beams [N, B] and their new tokens [N, B]."""
    count, beams, words = logits_NBV.shape
    log_probs = logits_NBV.log_softmax(-1).flatten(0, 1)
    ban_repeats(log_probs, history(state.prompts_NP, state.sequences_NBt, settings), settings.no_repeat_ngram)
    totals = (log_probs.unflatten(0, (count, beams)) + state.scores_NB[:, :, None]).flatten(1)
    scores_NK, index_NK = totals.topk(candidates)
    tokens_NK, beams_NK = index_NK % words, index_NK // words
    sequences_NKt = state.sequences_NBt.gather(1, beams_NK[:, :, None].expand(-1, -1, step - 1))
    sequences_NKt = torch.cat([sequences_NKt, tokens_NK[:, :, None]], dim=-1)
    ended_NK = torch.isin(tokens_NK, ends) | state.limit_N.eq(step)[:, None]

    finish(state, sequences_NKt, scores_NK / step**settings.length_penalty, ended_NK)

    state.scores_NB, going_NB = (scores_NK + ended_NK * NEVER).topk(beams)
    state.sequences_NBt = sequences_NKt.gather(1, going_NB[:, :, None].expand(-1, -1, step))
    return beams_NK.gather(1, going_NB), tokens_NK.gather(1, going_NB)


def finish(state: Beams, sequences_NKt: Tensor, ranks_NK: Tensor, ended_NK: Tensor) -> None:
    """Add the ended sequences among the first B candidates, and keep the best B of all finished sequences."""
    beams = state.scores_NB.shape[1]
    ended_NK = ended_NK & (torch.arange(ended_NK.shape[1], device=ended_NK.device) < beams)
    if not ended_NK.any():
        return
    padded = torch.full((*ended_NK.shape, state.finished_NBS.shape[2]), -1, device=ended_NK.device)
    padded[:, :, : sequences_NKt.shape[2]] = sequences_NKt
    scores = torch.cat([state.finished_scores_NB, ranks_NK + ~ended_NK * NEVER], dim=1)
    state.finished_scores_NB, kept = scores.topk(beams)
    state.finished_NBS = torch.cat([state.finished_NBS, padded], dim=1).gather(
        1, kept[:, :, None].expand(-1, -1, padded.shape[2])
    )
    state.is_finished_NB = torch.cat([state.is_finished_NB, ended_NK], dim=1).gather(1, kept)


def is_done(state: Beams, step: int, length_penalty: float) -> Tensor:
    """Whether an input is done, by the rule in ``beam_search``, bool [N]."""
    best_running_N = state.scores_NB[:, 0] / step**length_penalty
    worst_finished_N = state.finished_scores_NB.amin(dim=1)
    return state.is_finished_NB.all(dim=1) & (best_running_N <= worst_finished_N)


def collect(state: Beams, rows_N: Tensor, results: list[list[int]], end_ids: Sequence[int]) -> None:
    """Store the best finished sequence of each input in ``rows_N`` (bool [N]) in ``results``."""
    for row in rows_N.nonzero()[:, 0].tolist():
        best = [token for token in state.finished_NBS[row, 0].tolist() if token >= 0]
        results[int(state.inputs_N[row])] = until_end(best, end_ids)
