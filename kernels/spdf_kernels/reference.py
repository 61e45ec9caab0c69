"""The three products in plain torch: expand, dense product, gather.

This is the reference for every other back end, and the back end `torch` for devices and dtypes that no kernel supports.
A dense weight exists only inside one call. Legend: T tokens, O out, I in, K kept entries.
"""

from __future__ import annotations

import warnings

import torch

from spdf_kernels.backends import Backend, Held, Routes
from spdf_kernels.pattern import SparsityPattern


def spmm(
    x_TI: torch.Tensor, values_K: torch.Tensor, bias_O: torch.Tensor | None, pattern: SparsityPattern
) -> torch.Tensor:
    """y [T, O] = x [T, I] times the transposed sparse weight, over kept entries only, plus bias."""
    y_TO = torch.nn.functional.linear(x_TI, _expand(values_K, pattern), bias_O)
    return _only_kept_entries(y_TO, x_TI, values_K, bias_O, pattern, transposed=False)


def spmm_transposed(dy_TO: torch.Tensor, values_K: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """dx [T, I] = dy [T, O] times the sparse weight, over kept entries only."""
    dx_TI = dy_TO @ _expand(values_K, pattern)
    return _only_kept_entries(dx_TI, dy_TO, values_K, None, pattern, transposed=True)


def sddmm(dy_TO: torch.Tensor, x_TI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """Gradient of the values [K]: entry (o, i) is the sum over tokens of dy[t, o] x[t, i]."""
    return (dy_TO.t() @ x_TI).view(-1).index_select(0, pattern.flat_index())


def _expand(values_K: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    out_features, in_features = pattern.shape
    weight = values_K.new_zeros(out_features * in_features)
    weight[pattern.flat_index()] = values_K
    return weight.view(out_features, in_features)


def _only_kept_entries(
    product: torch.Tensor,
    operand: torch.Tensor,
    values_K: torch.Tensor,
    bias: torch.Tensor | None,
    pattern: SparsityPattern,
    transposed: bool,
) -> torch.Tensor:
    """Compute tokens with a non-finite operand again; the dense product gave 0 * Inf = NaN in all their outputs.

    A reduction over the product detects the usual case of finite results, which need no work.
    """
    if product.numel() == 0 or bool(torch.isfinite(product).all()):
        return product
    tokens = (~torch.isfinite(operand).all(dim=1)).nonzero().view(-1)
    if len(tokens) == 0:
        return product
    wide = torch.promote_types(operand.dtype, torch.float32)
    weight = _kept_alone(values_K.to(wide), pattern)
    some = operand[tokens].to(wide)
    exact = some @ weight if transposed else (weight @ some.t()).t()
    product[tokens] = (exact if bias is None else exact + bias.to(wide)).to(product.dtype)
    return product


def _kept_alone(values_K: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """The weight in CSR. Its products skip pruned entries, but take longer than a dense product."""
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    rows, columns = pattern.shape
    index = pattern.flat_index().long()
    starts = torch.searchsorted(index, columns * torch.arange(rows + 1, device=index.device))
    return torch.sparse_csr_tensor(starts, index % columns, values_K, (rows, columns), check_invariants=False)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Reference:
    """The back end `torch`: any device, any of DTYPES. Its products take as many multiplications as dense ones."""

    name = "torch"
    path = "dense"
    skips_work = False
    spmm = staticmethod(spmm)
    spmm_t = staticmethod(spmm_transposed)
    sddmm = staticmethod(sddmm)

    def available(self) -> None:
        return None

    def supports(self, device: torch.device, dtype: torch.dtype, pattern: SparsityPattern) -> str | None:
        if dtype not in DTYPES:
            return f"the back end torch multiplies float32, bfloat16, float16 and float64, not {dtype}"
        return None

    def prepare(self, pattern: SparsityPattern, dtype: torch.dtype) -> Routes:
        pattern.flat_index()
        return Routes("torch", "torch", "torch")

    def bytes(self, pattern: SparsityPattern) -> Held:
        index = pattern.prepared.get("flat_index")
        return Held(0 if index is None else index.numel() * index.element_size(), 0)


BACKENDS: tuple[Backend, ...] = (Reference(),)
