"""Tile sizes, warps and pipeline depth of each kernel, by chip and block edge.

A fixed table and no autotuner: a run that is continued must give the same bits. `num_stages` counts the load of an
index too; 6 makes three buffers of tiles, 8 four.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """One launch configuration."""

    tokens: int
    """Tokens of a tile (BT)."""
    step: int
    """Inputs of a pipeline step (BK); the products of dW have none."""
    warps: int
    stages: int
    group: int = 1
    """dW: neighbouring blocks of a program."""


class Configuration(NamedTuple):
    """The kernels of one block edge on one chip. `box` is None where tensor descriptors are not used."""

    spmm: Tile
    sddmm: Tile
    spmm_box: Tile | None = None
    spmm_box_T: Tile | None = None
    sddmm_box: Tile | None = None


SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448}
"""Bytes that a program may hold, by compute capability."""

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
"""Token tiles that meet all feature tiles before the next ones do."""
CHUNK = 4096
"""Weights of a program of `expand` and `gather`."""
MOST_SHARES = 8
"""Parts into which dW divides the tokens at the most, where blocks alone do not fill the chip."""


def configuration(capability: int, block: int) -> Configuration:
    """The table's row of the newest chip that is not newer than `capability` (90 for 9.0).

    From 12.0 on, consumer chips again, a program has no more shared memory than A100's rows take.
    """
    capability = 80 if capability >= 120 else capability
    chips = [chip for chip, edge in CONFIGURATIONS if edge == block and chip <= capability]
    if not chips:
        raise ValueError(f"no configuration for blocks of {block} at compute capability {capability}")
    return CONFIGURATIONS[max(chips), block]


def shares_of_tokens(programs: int, steps: int, processors: int) -> int:
    """Parts of the tokens in dW: the fewest that give each multiprocessor a program, at most MOST_SHARES or `steps`."""
    return max(1, min(MOST_SHARES, steps, processors // max(programs, 1)))
