"""A patch of Triton's interpreter for bfloat16 operands of `tl.dot`.

The interpreter holds bfloat16 as 16-bit integers and multiplies the integers (triton issue 11584, closed as not
supported). Loads, stores and casts are correct.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def widen_bfloat16_dot() -> None:
    """Convert bfloat16 operands of `tl.dot` to float32; a second call has no effect."""
    builder: Any = interpreter.InterpreterBuilder
    original = builder.create_dot
    if getattr(original, "widens", False):
        return

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        data = interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None).view("float32")
        return interpreter.TensorHandle(data, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return original(self, widened(a), widened(b), d, *rest)

    create_dot.widens = True  # type: ignore[attr-defined]
    builder.create_dot = create_dot
