"""Learning rates at the ends of steps (rule: the last token has 10% of the peak)."""

from __future__ import annotations

import math

import pytest

from spdf_dist.training.schedule import cosine_by_tokens, linear_by_steps


def test_cosine_by_tokens():
    at = {t: cosine_by_tokens(t, peak=2.0, min_ratio=0.1, warmup=100, total=1100) for t in (50, 100, 600, 1100, 1200)}
    assert at[50] == 1.0 and at[100] == 2.0
    assert at[600] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert at[1100] == pytest.approx(0.2) and at[1200] == pytest.approx(0.2)
    assert cosine_by_tokens(350, peak=1, min_ratio=0, warmup=100, total=1100) == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 4))
    )


def test_linear_by_steps():
    rates = [linear_by_steps(step, peak=1.0, warmup=4, total=12) for step in range(1, 13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == 0.0 and rates[7] == 0.5
