"""Independent random streams from one seed.

Masks, initialisation, data order and dropout draw from separate domains. Streams with the same key may correlate, so
that, for example, a mask would select weights by their value.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITMIX_INCREMENT = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: the step of SplitMix64's counter."""


def derive_seed(domain: str, seed: int, name: str = "") -> int:
    """A 64-bit seed from the SHA-256 of domain, seed and name."""
    digest = hashlib.sha256(f"spdf/v1\0{domain}\0{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, a bijection in which every input bit affects all output bits.

    ``x`` (uint64, any shape) is changed in place and returned. Source: Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", 2014.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def splitmix64(key: int, count: int) -> NDArray[np.uint64]:
    """Random uint64 [count]: SplitMix64 at the counters 1 ... count from ``key``.

    For one key the map from counter to number is a bijection, so no two numbers are equal.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64)
        z *= np.uint64(SPLITMIX_INCREMENT)
        z += np.uint64(key)
    return mix(z)


def philox(key: str, count: int) -> NDArray[np.uint64]:
    """Random uint64 [count] from numpy's Philox, keyed by a text. The stream is the same in all versions of numpy.

    A smaller ``count`` gives the beginning of the same stream.
    """
    import numpy as np

    digest = hashlib.sha256(key.encode()).digest()
    words = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.asarray(np.random.Philox(key=words).random_raw(count))
