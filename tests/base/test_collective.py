"""Operations that follow from allgather, over one process and over files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from spdf_dist.base.collective import Collective, FileProcesses, SingleProcess
from spdf_dist.config.errors import SpdfError, UserError


def on_ranks(folder: Path, work: Any) -> list[Any]:
    """Run ``work(collective)`` on two ranks that communicate through files. Returns the results or errors by rank."""
    results: list[Any] = [None, None]

    def one(rank: int) -> None:
        ranks = FileProcesses(rank, 2, folder / "meetings" / "1")
        try:
            results[rank] = work(ranks)
        except SpdfError as error:
            results[rank] = error
        ranks.close()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_operations_over_files_and_alone(tmp_path: Path) -> None:
    def work(ranks: Collective) -> list[Any]:
        return [
            ranks.gather(ranks.rank),
            ranks.broadcast(ranks.rank),
            ranks.all_reduce_max(ranks.rank),
            ranks.barrier(),
        ]

    assert on_ranks(tmp_path, work) == [[[0, 1], 0, 1.0, None], [None, 0, 1.0, None]]
    assert not (tmp_path / "meetings").exists()
    assert work(SingleProcess()) == [[0], 0, 0.0, None]


@pytest.mark.parametrize("case", ["link", "open"])
def test_a_folder_that_others_could_have_made_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "victim").mkdir()
    if case == "link":
        (tmp_path / ".out.ranks").symlink_to("victim")
    else:
        (tmp_path / ".out.ranks").mkdir()
        (tmp_path / ".out.ranks").chmod(0o777)
    with pytest.raises(UserError, match="others can write to it: remove it"):
        FileProcesses(0, 2, tmp_path / ".out.ranks" / "7.0.0")
    assert not any((tmp_path / "victim").iterdir())


def test_an_error_of_rank_zero_is_every_ranks(tmp_path: Path) -> None:
    def fail() -> None:
        raise UserError("wrong file")

    both = on_ranks(tmp_path, lambda ranks: ranks.on_rank_zero(fail))
    assert [str(error) for error in both] == ["wrong file", "wrong file"]
    assert all(isinstance(error, UserError) for error in both)
    with pytest.raises(UserError, match="wrong file"):
        SingleProcess().on_rank_zero(fail)
