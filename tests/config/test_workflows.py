"""The shipped workflows of the paper and of the evidence studies can be planned, and have the settings of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from spdf_launcher.plan import Job, plan
from spdf_launcher.summary import cost_of
from spdf_launcher.workflow import load_workflow

from spdf_dist.accounting.flops import training_flops
from spdf_dist.accounting.parameters import linear_parameters, total_parameters
from spdf_dist.config.budget import total_steps
from spdf_dist.config.load import build
from spdf_dist.config.schema import PretrainConfig

FILES = (
    "packed/index.json",
    "packed_validation/index.json",
    "hf/config.json",
    "text/00.jsonl.zst",
    "text/01.jsonl.zst",
    "text/02.jsonl.zst",
    "text/val.jsonl.zst",
    "e2e/trainset.csv",
    "e2e/trainset.csv.gz",
    "e2e/devset.csv",
    "e2e/testset_w_refs.csv",
    "webnlg/train.json",
    "webnlg/dev.json",
    "webnlg/test.json",
    "webnlg/lora/train.json.gz",
    "webnlg/lora/dev.json.gz",
    "dart/dart-v1.1.1-full-train.json",
    "dart/dart-v1.1.1-full-dev.json",
    "dart/dart-v1.1.1-full-test.xml",
    "curation/train.csv",
    "curation/validation.csv",
    "curation/test.csv",
)


METHODS = ("study_cpu", "variable_spdf_cpu", "variable_spdf_6p7b", "sparse_continued", "sparse_wide", "rigl_gpt2_small")


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Plan a shipped workflow whose input files exist but are empty."""
    for name in FILES:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    monkeypatch.setenv("SPDF_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SPDF_HF", str(tmp_path / "data/hf"))
    monkeypatch.setenv("SPDF_PACKED", str(tmp_path / "data/packed"))
    monkeypatch.setenv("SPDF_PACKED_VALIDATION", str(tmp_path / "data/packed"))

    def build_plan(name: str) -> dict[str, Job]:
        return {job.id: job for job in plan(load_workflow(name), tmp_path / "work", False)}

    return build_plan


def named(jobs: dict[str, Job], name: str) -> list[Job]:
    return [job for job in jobs.values() if job.name == name]


def config_of(job: Job) -> PretrainConfig:
    """The config of a pre-training job, without a learning rate where a selection chooses it."""
    assert job.config is not None
    training = {key: value for key, value in job.config["training"].items() if "${" not in str(value)}
    config: PretrainConfig = build(PretrainConfig, job.config | {"training": training}, "")
    return config


@pytest.mark.parametrize("model", ["gpt2_small", "gpt3_xl"])
@pytest.mark.parametrize("task", ["e2e", "webnlg", "dart", "curation"])
def test_each_experiment_of_the_paper_is_a_chain(planned, model: str, task: str) -> None:  # type: ignore[no-untyped-def]
    jobs = planned(f"{model}_{task}")
    pretraining = named(jobs, "pretrain")
    assert {job.variant for job in pretraining} == {"dense", "s50", "s75"}
    configs = [config_of(job) for job in pretraining]
    assert sorted(config.sparsity.level for config in configs) == [0, 0.5, 0.75]
    assert {config.training.train_tokens for config in configs} == {2.5e9 if model == "gpt2_small" else 26e9}
    cells = named(jobs, "finetune")
    assert len(cells) == 3 * (6 if task == "curation" else 12)
    assert {job.config["finetune"]["task"] for job in cells if job.config} == {task}
    finals = named(jobs, "final")
    assert len(finals) == 3 * 3 and {job.cell["seed"] for job in finals} == {"1", "2", "3"}
    # Selections use validation data: no job below a selection uses the test set.
    for select in named(jobs, "select"):
        below = [need for need in select.needs]
        while below:
            job = jobs[below.pop()]
            assert not any("test" in word for word in job.arguments if word in ("test", "test_seen"))
            below += job.needs
    last = {"curation": {"perplexity"}, "webnlg": {"evaluate-seen", "evaluate-unseen", "evaluate-all"}}
    (report,) = named(jobs, "report")
    assert {jobs[need].name for need in report.needs} == last.get(task, {"evaluate"})


@pytest.mark.parametrize(("name", "small", "large"), [("evidence_cpu", "1m", "4m"), ("evidence_gpu", "125m", "305m")])
def test_the_evidence_studies_compare_like_with_like(planned, name: str, small: str, large: str) -> None:  # type: ignore[no-untyped-def]
    jobs = planned(name)
    configs = {(job.variant, job.cell["seed"]): config_of(job) for job in named(jobs, "pretrain")}
    assert {seed for _, seed in configs} == {"1", "2", "3"}
    assert all(str(config.seed) == seed for (_, seed), config in configs.items())
    for size in (small, large):
        dense = configs[f"{size}-dense", "1"]
        for what, level, pattern in (("s50", 0.5, ""), ("s75", 0.75, ""), ("b75", 0.75, "block:16")):
            sparse = configs[f"{size}-{what}", "1"]
            assert (sparse.sparsity.level, sparse.sparsity.pattern) == (level, pattern or "unstructured")
            assert sparse.model == dense.model and total_steps(sparse) == total_steps(dense)
            assert sparse.training.warmup_tokens == dense.training.warmup_tokens
        assert total_steps(configs[f"{size}-untrained", "1"]) == 0
        s75 = configs[f"{size}-s75", "1"]
        if f"{size}-small" in {variant for variant, _ in configs}:
            kept = total_parameters(s75.model, s75.sparsity)
            assert total_parameters(configs[f"{size}-small", "1"].model) == pytest.approx(kept, rel=0.03)
            spent = training_flops(s75.model, s75.sparsity) * total_steps(s75)
            stopped = configs[f"{size}-stopped", "1"]
            assert training_flops(dense.model) * total_steps(stopped) == pytest.approx(spent, rel=0.005)
    assert {job.variant for job in named(jobs, "finetune-sparse")} == {f"{small}-s75", f"{large}-s75"}
    assert all(job.config and job.config["finetune"]["keep_mask"] for job in named(jobs, "finetune-sparse"))
    assert len(named(jobs, "evaluate")) == len(configs)
    # One selection per pattern chooses a learning rate, which other jobs reference.
    chosen = next(job for job in named(jobs, "pretrain") if job.variant == f"{large}-s75")
    assert chosen.config and chosen.config["training"]["lr"] == "${jobs.pick-s75.grid.training.lr}"


@pytest.mark.parametrize("name", METHODS)
def test_the_workflows_of_other_methods_can_be_planned(planned, name: str) -> None:  # type: ignore[no-untyped-def]
    jobs = planned(name)
    assert named(jobs, "report" if name != "variable_spdf_6p7b" else "finetune")
    assert cost_of(list(jobs.values())).flops > 0  # also where another job chooses a learning rate


def test_a_second_phase_starts_from_the_first(planned) -> None:  # type: ignore[no-untyped-def]
    jobs = planned("variable_spdf_6p7b")
    sparse, dense = jobs["sparse"], jobs["dense"]
    assert dense.config and dense.config["training"]["init_from"].endswith("sparse/run") and "sparse" in dense.needs
    first, second = config_of(sparse), build(PretrainConfig, dense.config | {"training": {}}, "")
    assert total_steps(first) == 62_523 and first.sparsity.level == 0.9 and second.sparsity.level == 0
    tokens = dense.config["training"]["train_tokens"]
    spent = training_flops(first.model, first.sparsity) * 62_523 * 1040 + training_flops(first.model) * tokens / 2048
    assert 0.3 < spent / (training_flops(first.model) * 62_523 * 1040) < 0.4  # Cerebras: 64% fewer


def test_wide_models_have_equal_nonzeros(planned) -> None:  # type: ignore[no-untyped-def]
    counts = {
        job.variant: linear_parameters(config_of(job).model, config_of(job).sparsity)
        for job in named(planned("sparse_wide"), "pretrain")
    }
    assert counts["wide50"] == pytest.approx(counts["dense"], rel=0.01)
    assert counts["wide75"] == pytest.approx(counts["dense"], rel=0.01)
