"""The exit code of an error follows from the refusal of the system that caused it, in every command."""

from __future__ import annotations

import errno
import os

import pytest

from spdf_dist.base.collective import SingleProcess
from spdf_dist.config.errors import NonFiniteError, SpdfError, Stopped, UserError, exit_code_of


def raised(kind: type[SpdfError], number: int, filename: str | None = None) -> SpdfError:
    """An error of ``kind`` whose cause is a refusal of the system."""
    try:
        try:
            raise OSError(number, os.strerror(number), filename)
        except OSError:
            raise kind("a file cannot be used") from None
    except SpdfError as error:
        return error


@pytest.mark.parametrize("kind", [SpdfError, UserError])
@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EACCES, 2), (errno.EPERM, 2), (errno.EROFS, 2), (errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 1)],
)
def test_the_cause_decides_whatever_the_error(kind: type[SpdfError], number: int, code: int) -> None:
    assert exit_code_of(raised(kind, number)) == code
    assert exit_code_of(OSError(number, os.strerror(number))) == code
    assert exit_code_of(OSError(number, os.strerror(number), "a/file")) == code

    def refuse() -> None:
        raise raised(kind, number)

    with pytest.raises(SpdfError) as error:
        SingleProcess().on_rank_zero(refuse)
    assert exit_code_of(error.value) == code


def test_other_errors_keep_their_own_codes() -> None:
    assert exit_code_of(raised(UserError, errno.ENOENT)) == 2 and exit_code_of(raised(SpdfError, errno.ENOENT)) == 1
    assert exit_code_of(raised(Stopped, errno.EACCES)) == 75 and exit_code_of(raised(NonFiniteError, errno.EIO)) == 3
    assert (
        exit_code_of(OSError(errno.ENOENT, "gone", "a/file")) == 2 and exit_code_of(OSError(errno.ENOENT, "gone")) == 1
    )


def test_an_error_number_in_the_message_of_a_library_counts() -> None:
    try:
        raise UserError("a cannot be read") from RuntimeError("No such device (os error 19)")
    except UserError as error:
        assert exit_code_of(error) == 1
