"""The table of launch configurations: the row of a chip, and when dW splits the tokens."""

from __future__ import annotations

import pytest
from spdf_kernels.triton.configurations import CONFIGURATIONS, configuration, shares_of_tokens


@pytest.mark.parametrize(("capability", "row"), [(80, 80), (86, 80), (89, 80), (90, 90), (100, 90), (120, 80)])
def test_a_chip_takes_the_newest_row_that_it_can_run(capability: int, row: int) -> None:
    for block in (128, 64):
        assert configuration(capability, block) is CONFIGURATIONS[row, block]


def test_no_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="no configuration for blocks of 128 at compute capability 75"):
        configuration(75, 128)
    with pytest.raises(ValueError, match="no configuration for blocks of 32"):
        configuration(90, 32)


def test_shares_fill_the_chip_and_no_more() -> None:
    assert shares_of_tokens(programs=1000, steps=256, processors=132) == 1
    assert shares_of_tokens(programs=32, steps=256, processors=132) == 4
    assert shares_of_tokens(programs=1, steps=256, processors=132) == 8
    assert shares_of_tokens(programs=1, steps=2, processors=132) == 2
