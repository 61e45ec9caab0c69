"""The shipped workflows of the paper and of the evidence study can be planned, and have the settings of the paper."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from spdf_launcher.plan import Job, plan
from spdf_launcher.summary import cost_of
from spdf_launcher.workflow import load_workflow

from spdf_dist.accounting.flops import training_flops
from spdf_dist.accounting.parameters import linear_parameters
from spdf_dist.accounting.phases import run_flops
from spdf_dist.config.budget import total_steps
from spdf_dist.config.load import build
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.studies.evidence.rows import SIGN, STUDY

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


def test_the_study_compares_like_with_like(planned) -> None:  # type: ignore[no-untyped-def]
    jobs = planned("study_cpu")
    configs = {job.id: config_of(job) for job in jobs.values() if job.kind == "pretrain"}
    for seed in map(str, range(1, 6)):
        dense = configs[f"cooldown-20/dense/seed={seed}"]
        assert (dense.seed, dense.sparsity.seed) == (int(seed), int(seed))  # the masks vary with the seed too
        for variant, level in (("s50", 0.5), ("s75", 0.75)):
            sparse = configs[f"cooldown-20/{variant}/seed={seed}"]
            assert sparse.sparsity.level == level
            assert (sparse.model, sparse.training.train_tokens) == (dense.model, dense.training.train_tokens)
    for name, config in configs.items():  # a branch has the seeds of its trunk, and so the same masks and data
        if name.startswith("cooldown-"):
            trunk = configs[re.sub(r"length=\d+,", "", re.sub("^cooldown(-10|-20)?(?=/|-)", "trunk", name))]
            assert (config.seed, config.sparsity.seed) == (trunk.seed, trunk.sparsity.seed), name
    static = run_flops(configs["cooldown-10/s75/seed=1"])
    equal = ["dense-equal/seed=1", "rigl/seed=1", "gmp/seed=1", "wide/seed=1", "blocks/pattern=side8,seed=1"]
    for name in equal:
        assert run_flops(configs[name]) == pytest.approx(static, rel=0.02), name
    two_phases = run_flops(configs["variable-sparse/seed=1"]) + run_flops(configs["variable-dense/seed=1"])
    assert two_phases == pytest.approx(static, rel=0.02)
    heads = {config.model.hidden_size // config.model.num_attention_heads for config in configs.values()}
    assert heads == {32}
    analysed = {name for kind in ("jobs", "sweeps", "held_out") for name in STUDY["law"][kind]}
    analysed |= {job for job, _, _ in STUDY["methods"].values()}
    analysed |= {name for pretrain, _, finetune in STUDY["sizes"] for name in (pretrain, finetune) if name}
    analysed |= {job for lines in STUDY["rates"].values() for job, _ in lines.values()} | {"decay-rule", *SIGN}
    analysed |= {f"{task}-{what}" for task in STUDY["tasks"] for what in ("20", "untrained")}
    assert analysed <= {job.name for job in jobs.values()}


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
