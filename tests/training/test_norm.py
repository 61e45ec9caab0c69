"""The sum of squares of the gradient norm, compared with float64."""

from __future__ import annotations

import math

import pytest
import torch

from spdf_dist.training.engine import NORM_ROW, sum_of_squares


@pytest.mark.parametrize("shape", [(3_000, 1_000), (NORM_ROW,), (NORM_ROW - 1,), (7, NORM_ROW + 1), (1,), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(sum_of_squares(x), x.double().square().sum(), rtol=1e-6, atol=0)


def test_a_transposed_gradient_and_what_is_not_finite() -> None:
    x = torch.randn(50, 70)
    torch.testing.assert_close(sum_of_squares(x.t()), x.double().square().sum(), rtol=1e-6, atol=0)
    x[3, 4] = math.inf
    assert math.isinf(sum_of_squares(x))
    x[3, 4] = math.nan
    assert math.isnan(sum_of_squares(x))
