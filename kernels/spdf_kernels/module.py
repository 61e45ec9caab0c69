"""`SparseLinear`: torch.nn.Linear with a static sparsity pattern, whose parameter is the vector of kept values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from spdf_kernels.linear import sparse_linear
from spdf_kernels.pattern import SparsityPattern


class SparseLinear(nn.Module):
    """y [..., out] = x [..., in] W^T + bias, where W [out, in] is zero at the pruned entries.

    Attributes: ``values`` [nnz] (Parameter, row-major order of the mask), ``bias`` [out] or None, ``pattern``.

    ``state_dict`` has ``values``, ``bias`` and ``mask_bits``, uint8 [ceil(out * in / 8)]: the mask in row-major order,
    the first entry in the highest bit. ``load_state_dict`` refuses values of another mask. Optimizer state, gradients
    and the messages of DDP and FSDP2 have the length of ``values``. All ranks of a process group need the same pattern.

    Raises ValueError for a pattern of another shape than [out_features, in_features].
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pattern: SparsityPattern,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(pattern, SparsityPattern):
            raise TypeError(f"pattern must be a SparsityPattern, not {type(pattern).__name__}")
        if pattern.shape != (out_features, in_features):
            raise ValueError(
                f"a layer of {in_features} inputs and {out_features} outputs needs a pattern of shape "
                f"[{out_features}, {in_features}], not {list(pattern.shape)}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.values = nn.Parameter(torch.empty(pattern.nnz, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.pattern = pattern
        self._move_pattern()
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, pattern: SparsityPattern) -> SparseLinear:
        """A layer with copies of the kept entries of ``linear.weight`` and of its bias, on its device, in its dtype."""
        weight = linear.weight.detach()
        layer = cls(
            linear.in_features,
            linear.out_features,
            pattern,
            bias=linear.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            layer.values.copy_(layer.pattern.compress(weight))
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    def to_dense(self) -> nn.Linear:
        """A torch.nn.Linear with the same values, zeros at the pruned entries, and a copy of the bias."""
        has_bias = self.bias is not None
        linear = nn.Linear(
            self.in_features, self.out_features, bias=has_bias, device=self.values.device, dtype=self.values.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(self.pattern.to_dense(self.values.detach()))
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    @property
    def mask_bits(self) -> torch.Tensor:
        """A copy of the mask's bits, because loading in place into a state_dict must not change the pattern."""
        return self.pattern.bits.clone()

    def reset_parameters(self) -> None:
        """Initialize as torch.nn.Linear does: uniform within +-1 / sqrt(in_features)."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        nn.init.uniform_(self.values, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [..., out] for x [..., in]; dtypes and errors are those of `sparse_linear`."""
        return sparse_linear(x, self.values, self.pattern, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"density={self.pattern.density:.4f}"
        )

    def _move_pattern(self) -> None:
        if self.values.device.type != "meta":  # meta parameters have no data; the pattern stays on its device
            self.pattern = self.pattern.to(self.values.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> SparseLinear:
        super()._apply(fn, recurse)
        self._move_pattern()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "mask_bits"] = self.mask_bits

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "mask_bits"
        given = state_dict.get(key)
        if given is None and prefix + "values" in state_dict:
            error_msgs.append(f"{prefix}values comes without {key}: nothing says which entries of the weight they are")
            return
        own = self.pattern.bits
        if given is not None and not (
            isinstance(given, torch.Tensor)
            and given.dtype == own.dtype
            and given.shape == own.shape
            and torch.equal(given.to(own.device), own)
        ):
            error_msgs.append(f"{key} is not the mask of this layer: make the layer with the pattern of the values")
            return
        if given is None and strict:
            missing_keys.append(key)
        others = {name: tensor for name, tensor in state_dict.items() if name != key}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
