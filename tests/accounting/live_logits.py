"""Measures the peak memory of logits."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveLogits(TorchDispatchMode):
    """The maximum of the total bytes of live matrices with ``words`` columns, while the mode is on."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = words
        self.alive: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dim() == 2 and result.shape[1] == self.words:
            given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
            new = [] if result.untyped_storage().data_ptr() in given else [weakref.ref(result)]  # not a weight
            self.alive = [ref for ref in self.alive if ref() is not None] + new
            held = (tensor for ref in self.alive if (tensor := ref()) is not None)
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
            self.most = max(self.most, sum(storages.values()))
        return result
