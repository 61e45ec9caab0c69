import csv
from pathlib import Path

import pytest

from spdf_dist.cli.main import main
from spdf_dist.config.errors import UserError
from spdf_dist.data.grammar import VALUES, mentions, slot_accuracy, write_synthetic_e2e


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_text_says_every_slot_and_no_input_is_shared(tmp_path: Path) -> None:
    assert main(["data", "synthetic-e2e", "--out", str(tmp_path), "--seed", "3"]) == 0
    inputs: dict[str, set[str]] = {}
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        found = rows(tmp_path / name)
        assert list(found[0]) == ["mr", "ref"]
        for row in found:
            hit, total = slot_accuracy(row["mr"], row["ref"])
            assert hit == total >= 4, row
        inputs[name] = {row["mr"] for row in found}
        if name != "trainset.csv":
            assert len(found) > 3 * len(inputs[name])
    assert sum(map(len, inputs.values())) == len(set().union(*inputs.values()))


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic_e2e(str(tmp_path / name), seed)
    contents = [(tmp_path / name / "devset.csv").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    with pytest.raises(UserError, match="other content"):
        write_synthetic_e2e(str(tmp_path / "a"), 2)
    assert (tmp_path / "a" / "devset.csv").read_bytes() == contents[0]


def test_slot_accuracy_wants_the_right_value_alone() -> None:
    mr = "name[Paper Boat], kind[bistro], cost[low], children[no], beside[Red Anchor]"
    assert slot_accuracy(mr, "Paper Boat is a cheap bistro next to red anchor. It is for adults only.") == (5, 5)
    assert slot_accuracy(mr, "Paper Boat is an expensive bistro.") == (2, 5)
    assert slot_accuracy(mr, "Paper Boat is a cheap bistro with high prices.") == (2, 5)
    assert slot_accuracy(mr, "Paper Boats") == (0, 5)
    assert slot_accuracy(mr, "") == (0, 5)


def test_no_wording_is_part_of_another_values() -> None:
    for values in VALUES.values():
        for value, wordings in values.items():
            others = [word for other, words in values.items() if other != value for word in words]
            assert not [(word, other) for word in wordings for other in others if mentions(other, word)]
