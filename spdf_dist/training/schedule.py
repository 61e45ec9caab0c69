"""Learning rates, each taken at what is done when the step ends."""

from __future__ import annotations

import math


def cosine_by_tokens(consumed: int, *, peak: float, min_ratio: float, warmup: int, total: int) -> float:
    """Linear warm-up over ``warmup`` tokens, then a cosine to ``min_ratio`` of the peak at token ``total``.

    ``consumed`` are the tokens at the end of the step. Source: SPDF, appendix A.1.
    """
    if consumed < warmup:
        return peak * consumed / warmup
    progress = min(1.0, (consumed - warmup) / max(1, total - warmup))
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def linear_by_steps(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up over ``warmup`` steps, then linear decay to zero at step ``total``; ``step`` counts from 1.

    Source: LoRA's fine-tuning (SPDF, appendix A.2, follows it).
    """
    if step < warmup:
        return peak * step / warmup
    return peak * max(0.0, (total - step) / max(1, total - warmup))
