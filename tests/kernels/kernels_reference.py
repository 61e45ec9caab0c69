"""Reference products over kept entries only, in float64, for comparison with every back end."""

import torch
from spdf_kernels import SparsityPattern, available_backends

BACKENDS = [name for name, reason in available_backends().items() if reason is None]
DTYPES = [torch.float32, torch.bfloat16]


def random_pattern(out: int, in_features: int, density: float, seed: int) -> SparsityPattern:
    generator = torch.Generator().manual_seed(seed)
    return SparsityPattern.from_mask(torch.rand(out, in_features, generator=generator) < density)


def random_tensor(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def forward(x: torch.Tensor, values: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """y[t, o] = sum over kept (o, i) of x[t, i] w[o, i]. Other entries are not used, which avoids 0 * Inf."""
    rows, columns = pattern.mask().nonzero(as_tuple=True)
    terms = x.double()[:, columns] * values.double()
    return torch.zeros(x.shape[0], pattern.shape[0], dtype=torch.float64).index_add_(1, rows, terms)


def grad_input(dy: torch.Tensor, values: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """dx[t, i] = sum over kept (o, i) of dy[t, o] w[o, i]."""
    rows, columns = pattern.mask().nonzero(as_tuple=True)
    terms = dy.double()[:, rows] * values.double()
    return torch.zeros(dy.shape[0], pattern.shape[1], dtype=torch.float64).index_add_(1, columns, terms)


def grad_values(dy: torch.Tensor, x: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """dw[o, i] = sum over t of dy[t, o] x[t, i] at the kept entries."""
    rows, columns = pattern.mask().nonzero(as_tuple=True)
    return (dy.double()[:, rows] * x.double()[:, columns]).sum(0)


def assert_close(result: torch.Tensor, exact: torch.Tensor, terms: int) -> None:
    """Within one rounding to the result's dtype and the rounding of a float32 sum of `terms` unit-variance products."""
    rounding = 2.0**-8 if result.dtype == torch.bfloat16 else 2.0**-23
    bound = rounding * exact.abs() + 2.0**-22 * max(terms, 4)
    error = (result.double() - exact).abs()
    assert result.shape == exact.shape
    assert bool((error <= bound).all()), f"off by {float((error / bound).max()):.2f} of the bound"
