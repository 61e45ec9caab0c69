"""Reads values of a Hugging Face ``config.json`` by type, so that no conversion changes a value without a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST = 1 << 53
"""Whole numbers up to this one are exact as floating-point numbers."""


def whole(config: Mapping[str, Any], key: str) -> int:
    """A whole number. Raises KeyError without the key, and ValueError for any other value, such as 2.5 or "2"."""
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{key} is {value!r:.40}, not a whole number")
    if abs(value) > LARGEST:
        raise ValueError(f"{key} is {value!r:.40}, which is too large")
    return int(value)


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A number. Raises ValueError for any other value, such as "1e-5"."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is {value!r:.40}, not a number")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or false. Raises ValueError for any other value, such as "false"."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r:.40}, neither true nor false")
    return value
