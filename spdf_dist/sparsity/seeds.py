"""Independent random streams from one seed.

Masks, initialisation, data order and dropout each draw from a domain of their own: streams that are keyed alike can
correlate, and then a mask would select weights by their value.
"""

from __future__ import annotations

import hashlib


def derive_seed(domain: str, seed: int, name: str = "") -> int:
    """A 64-bit seed that depends on all three, by SHA-256."""
    digest = hashlib.sha256(f"spdf/v1\0{domain}\0{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
