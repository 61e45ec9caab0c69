"""Tile sizes, warps and pipeline depth of each kernel, by chip and block edge.

The table is fixed and there is no autotuner, because a continued run must give the same bits. `num_stages` also counts
the load of an index: 6 gives three buffers of tiles, 8 gives four.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """One launch configuration."""

    tokens: int
    """Tokens per tile (BT)."""
    step: int
    """Inputs per pipeline step (BK); not used by dW."""
    warps: int
    stages: int
    group: int = 1
    """dW: neighbouring blocks per program."""


class Configuration(NamedTuple):
    """The kernels of one block edge on one chip. `box` is None if tensor descriptors are not used."""

    spmm: Tile
    sddmm: Tile
    spmm_box: Tile | None = None
    spmm_box_T: Tile | None = None
    sddmm_box: Tile | None = None


SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448}
"""Shared memory per program in bytes, by compute capability."""

CONFIGURATIONS: dict[tuple[int, int], Configuration] = {
    (90, 128): Configuration(
        spmm=Tile(128, 64, 8, 6),
        sddmm=Tile(64, 0, 8, 4),
        spmm_box=Tile(128, 64, 8, 6),
        spmm_box_T=Tile(128, 64, 8, 6),
        sddmm_box=Tile(64, 0, 8, 4, group=2),
    ),
    (90, 64): Configuration(
        spmm=Tile(128, 64, 4, 6),
        sddmm=Tile(64, 0, 4, 4),
        spmm_box=Tile(256, 64, 8, 6),
        spmm_box_T=Tile(256, 64, 8, 6),
        sddmm_box=Tile(64, 0, 4, 4, group=2),
    ),
    (80, 128): Configuration(spmm=Tile(128, 64, 8, 4), sddmm=Tile(64, 0, 8, 3)),
    (80, 64): Configuration(spmm=Tile(128, 64, 4, 4), sddmm=Tile(64, 0, 4, 3)),
}

INTERPRETER = Configuration(
    spmm=Tile(64, 32, 4, 1),
    sddmm=Tile(32, 0, 4, 1),
    spmm_box=Tile(64, 32, 4, 1),
    spmm_box_T=Tile(64, 32, 4, 1),
    sddmm_box=Tile(32, 0, 4, 1, group=2),
)
"""Small tiles for Triton's interpreter, of any block edge from 32 on."""

GROUP = 8
"""Number of token tiles that are processed with all feature tiles before the next token tiles."""
CHUNK = 4096
"""Weights per program of `expand` and `gather`."""
MAX_SHARES = 8
"""Most parts of the tokens in dW; the tokens are divided if there are too few blocks to fill the chip."""


def configuration(capability: int, block: int) -> Configuration:
    """The table's row of the newest chip that is not newer than `capability` (90 for 9.0).

    From 12.0 on (consumer chips) it is the row of A100, because a program has less shared memory. Raises ValueError
    for a block edge without a configuration.
    """
    capability = 80 if capability >= 120 else capability
    chips = [chip for chip, edge in CONFIGURATIONS if edge == block and chip <= capability]
    if not chips:
        raise ValueError(f"no configuration for blocks of {block} at compute capability {capability}")
    return CONFIGURATIONS[max(chips), block]


def shares_of_tokens(programs: int, steps: int, processors: int) -> int:
    """Parts of the tokens in dW: the fewest that give each multiprocessor a program, up to MAX_SHARES and `steps`."""
    return max(1, min(MAX_SHARES, steps, processors // max(programs, 1)))
