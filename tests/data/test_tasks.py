"""The tasks' readers and writers, compared with LoRA's files if SPDF_DATA is set."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from spdf_dist.base.numbers import counted
from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks import distinct_contexts, find_task, load_task, references
from spdf_dist.data.tasks.e2e import TEST_RULES, TRAIN_RULES, linearize, split_words
from spdf_dist.data.tasks.write import write_references
from spdf_dist.extensions import task_names


@pytest.fixture(scope="module")
def real() -> Path:
    folder = os.environ.get("SPDF_DATA")
    if not folder:
        pytest.skip("SPDF_DATA is not set: no official data to compare with")
    return Path(folder)


@pytest.mark.parametrize(
    ("source", "lora", "split", "groups"),
    [("devset.csv", "valid.txt", "validation", 547), ("testset_w_refs.csv", "test.txt", "test", 630)],
)
def test_e2e_is_lora_s_text(real: Path, source: str, lora: str, split: str, groups: int) -> None:
    examples = load_task("e2e", real / "e2e" / source, split)
    text = (real / "e2e" / "lora" / lora).read_text(encoding="utf-8")
    assert "".join(f"{example.context}||{example.target} \n" for example in examples) == text
    assert len(distinct_contexts(examples)) == len(references(examples)) == groups


def test_e2e_counts(real: Path) -> None:
    train = load_task("e2e", real / "e2e" / "trainset.csv.gz", "train")
    assert (len(train), len(distinct_contexts(train))) == (42_061, 4_862)
    without_references = load_task("e2e", real / "e2e" / "testset.csv", "test")
    with_references = load_task("e2e", real / "e2e" / "testset_w_refs.csv", "test")
    assert [example.context for example in without_references] == distinct_contexts(with_references)


@pytest.mark.parametrize(
    ("split", "file", "count", "inputs"),
    [
        ("train", "train", 18_025, 6_888),
        ("validation", "dev", 2_258, 870),
        ("test", "test", 4_928, 1_862),
        ("test_seen", "test", 2_495, 971),
        ("test_unseen", "test", 2_433, 891),
    ],
)
def test_webnlg_xml_and_json_agree(real: Path, split: str, file: str, count: int, inputs: int) -> None:
    of_json = load_task("webnlg", real / "webnlg" / "lora" / f"{file}.json.gz", split)
    of_xml = load_task("webnlg", real / "webnlg" / "webnlg_challenge_2017.xml.tar.gz", split)
    assert len(of_json) == count and of_json[-1].group + 1 == inputs
    pairs = [Counter((example.context, example.target) for example in examples) for examples in (of_json, of_xml)]
    assert pairs[0] == pairs[1]


def test_webnlg_s_own_folders_are_read_as_its_archive_is(real: Path, tmp_path: Path) -> None:
    with tarfile.open(real / "webnlg" / "webnlg_challenge_2017.xml.tar.gz") as archive:
        archive.extractall(tmp_path, [m for m in archive if "/test/" in m.name or "Airport" in m.name])
    (test,) = tmp_path.rglob("test")
    for split, count in (("test", 4_928), ("test_seen", 2_495), ("test_unseen", 2_433)):
        assert len(load_task("webnlg", test, split)) == count
    with pytest.raises(UserError, match="holds no example"):
        load_task("webnlg", test.parent / "train", "test")
    assert load_task("webnlg", test.parent / "train", "train") == load_task("webnlg", test.parent, "train")


def test_dart_counts(real: Path) -> None:
    assert len(load_task("dart", real / "dart" / "dart-v1.1.1-full-dev.json.gz", "validation")) == 6_980
    assert len(load_task("dart", real / "dart" / "dart-v1.1.1-full-test.xml.gz", "test")) == 12_552


def test_linearized_meanings() -> None:
    meaning = "name[The Mill], eatType[pub], priceRange[£20-25], familyFriendly[yes], customer rating[5 out of 5]"
    assert linearize(meaning) == (
        "name : The Mill | Type : pub | price : £ 20 - 25 | family friendly : yes | customer rating : 5 out of 5"
    )
    for wrong in ("name", "name[A] area[B]", "name[A"):
        with pytest.raises(ValueError, match="attribute"):
            linearize(wrong)


@pytest.mark.parametrize(
    ("text", "train", "test"),
    [
        ("It isn't family-friendly.", "It isn 't family - friendly .", "It is n't family - friendly ."),
        ("A 5-star pub, £20-£25..", "A 5 - star pub , £ 20- £ 25 ..", "A 5-star pub , £ 20-£25 .."),
        ("", "", ""),
        ("5 out of 5. in it", "5 out of 5. in it", "5 out of 5 . in it"),
        ("thats 'The Mill,near' £30.99", "thats ' The Mill , near ' £ 30.99", "that s ' The Mill , near ' £ 30.99"),
    ],
)
def test_words_of_both_of_lora_s_tokenizers(text: str, train: str, test: str) -> None:
    assert (split_words(text, TRAIN_RULES), split_words(text, TEST_RULES)) == (train, test)


def test_webnlg_takes_good_texts_and_known_categories(tmp_path: Path) -> None:
    triple = {"subject": "A_B", "property": "locatedIn", "object": "C"}
    entries = [
        {
            "category": category,
            "modifiedtripleset": [triple, {**triple, "object": category}],
            "lexicalisations": [{"comment": "good", "lex": "One."}, {"comment": "toFix", "lex": "Two."}],
        }
        for category in ("Airport", "Artist")
    ]
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"entries": [{str(at + 1): entry} for at, entry in enumerate(entries)]}))
    everything = load_task("webnlg", path, "test")
    assert [example.target for example in everything] == ["One.", "One."]
    assert everything[0].context == "A_B : locatedIn : C | A_B : locatedIn : Airport"
    assert load_task("webnlg", path, "test_seen") == [everything[0]]
    assert [example.context for example in load_task("webnlg", path, "test_unseen")] == [everything[1].context]


def test_dart_lowers_relations_in_both_forms(tmp_path: Path) -> None:
    of_json, of_xml = tmp_path / "dev.json", tmp_path / "test.xml"
    of_json.write_text(
        json.dumps([{"tripleset": [["Mars", "IS_A", "Planet"]], "annotations": [{"text": "X."}, {"text": "Y."}]}])
    )
    of_xml.write_text(
        "<benchmark><entries><entry eid='1'><modifiedtripleset><mtriple>Mars | IS_A | Planet</mtriple>"
        "</modifiedtripleset><lex>X.</lex><lex>Y.</lex></entry></entries></benchmark>"
    )
    examples = load_task("dart", of_json, "validation")
    assert examples == load_task("dart", of_xml, "test")
    assert examples[0].context == "Mars : is_a : Planet" and [example.group for example in examples] == [0, 0]


def test_curation_leaves_out_what_was_not_scraped(tmp_path: Path) -> None:
    path = tmp_path / "curation.csv"
    path.write_text('title,summary,url,article_content\na,Short.,u,"Long\n\ntext."\nb,Alone.,u,\n')
    (example,) = load_task("curation", path, "train")
    assert (example.context, example.target) == ("Long text.", "Short.")


def test_reference_files_as_lora_writes_them(tmp_path: Path) -> None:
    source = tmp_path / "dev.json"
    texts = [[f"Text {number} of It's one." for number in range(8)], ["Only A-B."]]
    source.write_text(
        json.dumps(
            [
                {"tripleset": [["s", "r", str(at)]], "annotations": [{"text": text} for text in group]}
                for at, group in enumerate(texts)
            ]
        )
    )
    files = write_references(find_task("dart"), load_task("dart", source, "validation"), tmp_path / "references")
    assert [file.name for file in files] == [f"reference{number}" for number in range(6)]
    assert files[5].read_text() == "text 5 of it ' s one .\nonly a - b .\n"
    csv = tmp_path / "e2e.csv"
    csv.write_text('mr,ref\nname[A],One.\nname[A],\nname[A],Two.\nname[B],"Three, four."\n')
    (file,) = write_references(find_task("e2e"), load_task("e2e", csv, "test"), tmp_path / "refs.txt")
    assert file.read_text() == "One .\nTwo .\n\nThree , four .\n\n"


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("e2e", "x.csv", "meaning,ref\na,b\n", "has no column 'mr'"),
        ("e2e", "x.csv", "mr,reference\nname[A],b\n", "has no column 'ref'"),
        ("e2e", "x.csv", "mr,ref\nname[A],b\nbroken,c\n", "line 3: 'broken'"),
        ("e2e", "x.csv", "mr,ref\nname[A],b,c\n", "line 2: 3 fields where the header has 2"),
        ("e2e", "x.csv", "mr,ref\n,text\n", "the meaning is empty"),
        ("e2e", "x.csv", "mr,ref\n", "holds no example"),
        ("e2e", "x.csv.gz", "not gzip", "cannot be read"),
        ("webnlg", "x.json", '{"entries": [{"1": {}}]}', "not WebNLG's JSON form"),
        ("webnlg", "x.json", "{", "line 1: not JSON"),
        ("webnlg", "x.txt", "a", "comes as .json"),
        ("dart", "x.xml", "<a>", "not XML"),
        ("dart", "x.json", '[{"tripleset": [["a", "b"]], "annotations": []}]', "not DART's JSON form"),
        ("curation", "x.csv", "title,summary\na,b\n", "no column 'article_content'"),
        ("e2e", "x.csv", "mr,ref,Ref\nname[A],b,c\n", "2 columns named 'ref'"),
        ("curation", "x.csv", "summary,summary,article_content\na,b,c\n", "2 columns named 'summary'"),
        ("e2e", "x.csv", "mr,ref\nname[A],b\nname[B],c\0d\n", "zero byte in line 3"),
        ("e2e", "x.txt", "a : b||c||d\n", "line 1: expected `context"),
        ("dart", "x.json", '[{"tripleset": [], "annotations": [{"text": "A"}]}]', "input of the text 'A' is empty"),
        ("dart", "x.json", '[{"tripleset": ["ABC"], "annotations": [{"text": "A"}]}]', "a triple is not a list"),
    ],
)
def test_mistakes_in_files_are_named(tmp_path: Path, task: str, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_task(task, path, "train")


TRIPLE = '{"subject": "s", "property": "p", "object": %s}'
WEBNLG = '{"entries": [{"1": {"category": %s, "modifiedtripleset": [%s], "lexicalisations": []}}]}'


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("e2e", "x.csv", b'mr,ref\nname[A],a\nname[B],"open\nname[C],c\n', "begins in line 3 is not CSV"),
        ("e2e", "x.csv", b'mr,ref\nname[A],"a"b\n', "begins in line 2 is not CSV"),
        ("e2e", "x.csv.gz", gzip.compress(b"mr,ref\n" * 99, mtime=0)[:12] + b"\xff" * 40, "cannot be read"),
        ("e2e", "x.csv.zst", b"x", "unpack it"),
        ("dart", "x.xml", b'<?xml version="1.0" encoding="foo"?><a/>', "not XML"),
        ("dart", "x.xml", b'<?xml version="1.0" encoding="gb2312"?><a/>', "not XML"),
        ("dart", "x.json", b"[" * 200_000, "nested too deeply"),
        ("dart", "x.json", b"[" + b"1" * 5000 + b"]", "not a task's JSON"),
        ("dart", "x.json", b'[{"tripleset": [], "annotations": []}, 5]', "entry 2"),
        ("dart", "x.json", b'[{"tripleset": [], "annotations": [{"text": "\\ud800"}]}]', "unpaired surrogate"),
        ("webnlg", "x.json", (WEBNLG % ('"Food"', TRIPLE % 5)).encode(), "entry 1, .*5 instead of a text"),
        ("webnlg", "x.json", (WEBNLG % ('"Food"', TRIPLE % "null")).encode(), "entry 1, .*None instead of a text"),
        ("webnlg", "x.json", (WEBNLG % ("[1]", TRIPLE % '"o"')).encode(), r"entry 1, .*\[1\] instead of a text"),
        ("webnlg", "x.tar.gz", gzip.compress(b"x" * 9999, mtime=0)[:12] + b"\xff" * 40, "cannot be read"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, task: str, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_task(task, path, "test")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_csv_lines_end_at_line_ends_alone(tmp_path: Path) -> None:
    path = tmp_path / "X.CSV.GZ"
    text = 'mr,ref\r\nname[A],one\u2028two\x85three\x0cfour\r\nname[B],"five\nsix"\r\n'
    path.write_bytes(gzip.compress(text.encode()))
    examples = load_task("e2e", path, "train")
    assert [example.target for example in examples] == ["one two three four", "five six"]
    with pytest.raises(UserError, match="is a folder"):
        load_task("e2e", tmp_path, "train")


def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'webnlg'"):
        find_task("webnl")
    with pytest.raises(UserError, match="did you mean 'test'"):
        load_task("e2e", tmp_path / "x.csv", "tests")
    with pytest.raises(UserError, match=r"x\.csv does not exist"):
        load_task("e2e", tmp_path / "x.csv", "test")
    assert all(find_task(name).name == name for name in task_names())


EMPTY_TARGETS = {
    "e2e": ("x.csv", 'mr,ref\n"name[A], area[b]",\n"name[B]",  \n"name[B]",It is B.\n', 2),
    "dart": ("x.json", '[{"tripleset":[["A","R","B"]],"annotations":[{"text":" "},{"text":"A has B."}]}]', 1),
    "webnlg": (
        "x.xml",
        "<b><entries><entry category='City' eid='1'><modifiedtripleset><mtriple>A | r | B</mtriple></modifiedtripleset>"
        "<lex comment='good'></lex><lex comment='good'>A has B.</lex></entry></entries></b>",
        1,
    ),
}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", EMPTY_TARGETS)
def test_empty_targets_are_no_examples_to_learn(task: str, split: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    name, content, empty = EMPTY_TARGETS[task]
    (tmp_path / name).write_text(content)
    examples = load_task(task, tmp_path / name, split)
    assert [example.target for example in examples] in (["It is B ."], ["A has B."])
    assert [example.group for example in examples] == [0]
    assert capsys.readouterr().err == f"{tmp_path / name}: left out {counted(empty, 'example')} with an empty text\n"


def test_a_file_of_empty_targets_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('mr,ref\n"name[A]",\n')
    with pytest.raises(UserError, match="there is no target"):
        load_task("e2e", tmp_path / "x.csv", "train")
    assert len(load_task("e2e", tmp_path / "x.csv", "test")) == 1


def encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_csv_of_other_encodings_and_separators_is_read(encoding: str, sign: str, tmp_path: Path) -> None:
    text = f'mr{sign}ref\r\n"name[Ä], area[b]"{sign}"Ä, it is in b."\r\n'
    (tmp_path / "x.csv").write_bytes(encoded(text, encoding))
    (example,) = load_task("e2e", tmp_path / "x.csv", "train")
    assert (example.context, example.target) == ("name : Ä | area : b", "Ä , it is in b .")


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.xml"])
def test_utf16_without_a_mark_is_refused(name: str, tmp_path: Path) -> None:
    task = {"x.csv": "e2e", "x.json": "dart", "x.xml": "dart"}[name]
    (tmp_path / name).write_bytes("mr,ref\nname[A],It is A and so on.\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"UTF-16LE|not XML"):
        load_task(task, tmp_path / name, "train")


def test_lora_text_of_e2e_is_read(real: Path) -> None:
    official = load_task("e2e", real / "e2e" / "testset_w_refs.csv", "test")
    assert load_task("e2e", real / "e2e" / "lora" / "test.txt", "test") == official


@pytest.mark.parametrize(
    ("task", "name", "content", "said"),
    [
        ("e2e", "x.txt", "no bars here", "line 1: expected"),
        ("e2e", "x.jsonl", '{"context": [1], "completion": [2]}', "E2E comes as"),
        ("e2e", "x.parquet", "PAR1", "E2E comes as"),
        ("dart", "x.jsonl", "{}", "DART comes as"),
        (
            "dart",
            "x.json",
            '[{"tripleset": [["A","R","B"]], "annotations": {"text": ["y"]}}]',
            "DART's JSON",
        ),
        ("dart", "x.json", '{"input": "x"}', "DART's JSON"),
        ("webnlg", "x.json", '[{"input": ["A | p | B"], "target": "x"}]', "WebNLG's JSON"),
        ("webnlg", "x.zip", "PK", "WebNLG comes as"),
    ],
)
def test_other_published_forms_are_refused_by_name(
    task: str, name: str, content: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        load_task(task, tmp_path / name, "train")
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_later_releases_of_webnlg_are_read(tmp_path: Path) -> None:
    entry = (
        "<entry category='City' eid='Id1'><modifiedtripleset><mtriple>A | p | B</mtriple></modifiedtripleset>"
        "<lex comment='' lang='en'>A is B.</lex><lex comment='good' lang='ru'>А это Б.</lex>"
        "<lex comment='good'><text>B is of A.</text><template>AGENT-1 is</template></lex>"
        "<lex comment='toFix' lang='en'>Wrong.</lex></entry>"
    )
    for part, name in (("train/1triples", "City.xml"), ("test", "rdf-to-text-generation-test-data-with-refs-en.xml")):
        folder = tmp_path / "release_v3.0/en" / part
        folder.mkdir(parents=True)
        (folder / name).write_text(f"<benchmark><entries>{entry}</entries></benchmark>", encoding="utf-8")
    for split in ("train", "test"):
        examples = load_task("webnlg", tmp_path / "release_v3.0/en", split)
        assert [example.target for example in examples] == ["A is B.", "B is of A."]


ENTRY = (
    "<b><entries><entry {category} eid='Id1'>{triples}<lex comment='good'>{text}</lex></entry></entries></b>",
    "<modifiedtripleset><mtriple>A | p |\n B</mtriple></modifiedtripleset>",
)


@pytest.mark.parametrize(
    ("split", "values", "said"),
    [
        ("train", {"triples": "<originaltripleset/>"}, "the input of the text 'A is B.' is empty"),
        ("train", {"text": "A <b>is</b> B."}, "entry Id1: the text has an element 'b' inside"),
        ("test_unseen", {"category": ""}, "an entry has no category"),
    ],
)
def test_near_misses_of_webnlg_are_refused(split: str, values: dict[str, str], said: str, tmp_path: Path) -> None:
    whole = {"category": "category='City'", "triples": ENTRY[1].replace("\n", ""), "text": "A is B."}
    (tmp_path / "x.xml").write_text(ENTRY[0].format(**{**whole, **values}))
    for task in ("webnlg", "dart") if split == "train" else ("webnlg",):
        with pytest.raises(UserError, match=said):
            load_task(task, tmp_path / "x.xml", split)


def test_examples_of_triples_have_one_line(tmp_path: Path) -> None:
    text = ENTRY[0].format(category="category='City'", triples=ENTRY[1].replace("|\n", "|"), text="A is\n   B.\r\n C")
    (tmp_path / "x.xml").write_text(text)
    (tmp_path / "x.json").write_text('[{"tripleset": [["A", "P\\nq", "B"]], "annotations": [{"text": "A\\nis B."}]}]')
    (example,) = load_task("webnlg", tmp_path / "x.xml", "train")
    assert (example.context, example.target) == ("A : p : B", "A is B. C")
    (example,) = load_task("dart", tmp_path / "x.json", "train")
    assert (example.context, example.target) == ("A : p q : B", "A is B.")


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_with_several_releases_of_webnlg_is_refused(tmp_path: Path, packed: bool) -> None:
    """Each text would count twice. Release 3.0 has its English texts in the folders en and ru."""
    text = ENTRY[0].format(category="category='City'", triples=ENTRY[1].replace("|\n", "|"), text="A is B.")
    for folder in ("v3/en/train/1triples", "v3/en/train/2triples", "v3/en/dev", "v3/ru/train", "v2/train"):
        (tmp_path / "w" / folder).mkdir(parents=True)
        (tmp_path / "w" / folder / "x.xml").write_text(text)
    for name, message in (("w", r"3 times: in .*v2.*en.*ru"), ("w/v3", r"2 times: in .*en, .*ru"), ("w/v3/en", None)):
        path = tmp_path / name
        if packed:
            path = tmp_path / f"{name.replace('/', '_')}.tar.gz"
            with tarfile.open(path, "w:gz") as archive:
                archive.add(tmp_path / name, "w")
        if message is None:
            assert len(load_task("webnlg", path, "train")) == 2
        else:
            with pytest.raises(UserError, match=message):
                load_task("webnlg", path, "train")


def test_references_under_another_name_and_russian_texts_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("mr,reference\na[b],A\n")
    with pytest.raises(UserError, match="has no column 'ref', but 'reference'"):
        load_task("e2e", tmp_path / "x.csv", "test")
    text = ENTRY[0].format(category="category='City'", triples=ENTRY[1].replace("|\n", "|"), text="A is B.")
    (tmp_path / "x.xml").write_text(text.replace("<lex", "<lex xml:lang='ru'"))
    with pytest.raises(UserError, match="holds no example"):
        load_task("webnlg", tmp_path / "x.xml", "train")


def test_long_fields_need_no_quadratic_time(tmp_path: Path) -> None:
    """Without the limits each of these takes minutes."""
    long = " " * 500_000
    (tmp_path / "x.json").write_text(f'[{{"tripleset": [["A", "P", "B"]], "annotations": [{{"text": "A{long}B"}}]}}]')
    assert len(load_task("dart", tmp_path / "x.json", "train")[0].target) == 500_002
    (tmp_path / "x.csv").write_text(f'mr,ref\n"a[b]","A"\n"a[b]","A{"." * 50_000}1"\n')
    for split in ("train", "test"):
        with pytest.raises(UserError, match="line 3: 'ref' has 50,002 characters, more than 20,000"):
            load_task("e2e", tmp_path / "x.csv", split)
    (tmp_path / "x.csv").write_text(f'mr,ref\n"a[b],{" " * 19_000}x","A"\n')
    with pytest.raises(UserError, match="is not of the form"):
        load_task("e2e", tmp_path / "x.csv", "train")


def test_lines_of_lora_s_text_may_end_in_any_way(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "x.txt").write_bytes(f"a : b||One.{end}a : c||Two.{end}".encode())
        assert [example.target for example in load_task("e2e", tmp_path / "x.txt", "train")] == ["One.", "Two."]


@pytest.mark.parametrize("task", ["curation", "e2e"])
def test_a_first_line_of_any_length_leaves_the_message_short(task: str, tmp_path: Path) -> None:
    """The first scraper of Curation Corpus writes URLs and pages without a header."""
    more = "".join(f",c{number}" for number in range(100))
    (tmp_path / "x.csv").write_text(f"http://a.b,<html>{'x' * 100_000}</html>{more}\nhttp://c.d,y{more}\n")
    with pytest.raises(UserError, match=r"has no column .*\.\.\.\);") as raised:
        load_task(task, tmp_path / "x.csv", "train")
    assert len(str(raised.value)) < 500


def test_rows_that_curation_leaves_out_are_counted(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "x.csv").write_text("summary,article_content\na,b\nc,\n ,d\n")
    assert len(load_task("curation", tmp_path / "x.csv", "train")) == 1
    assert "left out 2 rows without an article or a summary" in capsys.readouterr().err


def test_files_that_unpack_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("files", "webnlg"):
        monkeypatch.setattr(f"spdf_dist.data.tasks.{module}.LARGEST_FILE", 1 << 20)
    for name, task in (("x.csv.gz", "e2e"), ("x.json.gz", "dart"), ("x.xml.gz", "webnlg"), ("x.json.gz", "webnlg")):
        (tmp_path / name).write_bytes(gzip.compress(bytes(50 << 20)))
        with pytest.raises(UserError, match="more than 1 MiB"):
            load_task(task, tmp_path / name, "train")
    with tarfile.open(tmp_path / "w.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("train/x.xml")
        member.size = 50 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(UserError, match="more than 1 MiB"):
        load_task("webnlg", tmp_path / "w.tar.gz", "train")


def test_a_pipe_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(UserError, match="is a pipe or a device"):
        load_task("e2e", tmp_path / "x.csv", "train")
