"""Tables for a terminal."""

from spdf_dist.accounting.text_table import text_table


def test_the_last_column_is_wrapped_to_the_width() -> None:
    why = "one two three four five six seven eight nine ten eleven twelve"
    lines = text_table(("layer", "why"), [("dense", why), ("sparse", "short")], left=2, width=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[2].startswith("dense   one two") and lines[3].startswith("        ")
    assert " ".join(line[8:] for line in lines[2:-1]) == why
    assert lines[-1] == "sparse  short"


def test_nothing_is_wrapped_without_a_width() -> None:
    assert text_table(("a", "b"), [("x", "1" * 90)]).splitlines()[-1] == "x  " + "1" * 90
