"""Workflow files: expansion, references, and one clear line per error."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from spdf_launcher.kinds import KINDS, check_arguments, command_arguments
from spdf_launcher.local import results_first
from spdf_launcher.plan import Job, plan, value_name
from spdf_launcher.references import escape, references, substitute
from spdf_launcher.workflow import load_workflow

from spdf_dist.config.errors import UserError
from spdf_dist.workflow_folder import job_folder

GOOD = """
variants:
  dense: {sparsity.level: 0}
  s75: {sparsity.level: 0.75}
jobs:
  pretrain:
    kind: pretrain
    set: {training.train_tokens: 4096, training.global_batch_size: 4, training.micro_batch_size: 4}
  finetune:
    kind: finetune
    set: {finetune.checkpoint: "${jobs.pretrain.run_dir}", finetune.train: train.csv}
    grid: {training.lr: [1e-4, 5e-5], seed: [1, 2]}
  select: {kind: select, needs: [finetune], set: {metric: val_loss}}
  report: {kind: report, needs: [select]}
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Plan a workflow text with overrides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("mr,ref\n")

    def build(text: str, *overrides: str, ranks_from_launcher: bool = False) -> dict[str, Job]:
        (tmp_path / "flow.yaml").write_text(text)
        workflow = load_workflow(str(tmp_path / "flow.yaml"), overrides)
        return {job.id: job for job in plan(workflow, tmp_path / "work", ranks_from_launcher)}

    return build


def test_expansion(make) -> None:  # type: ignore[no-untyped-def]
    jobs = make(GOOD)
    assert len(jobs) == 2 + 8 + 2 + 1
    cell = jobs["finetune/s75/seed=2,lr=5e-05"]
    assert cell.needs == ("pretrain/s75",) and cell.cell == {"seed": "2", "training.lr": "5e-05"}
    assert cell.config is not None and cell.config["training"]["lr"] == 5e-5 and cell.config["seed"] == 2
    assert len(jobs["select/dense"].needs) == 4 and jobs["report"].needs == ("select/dense", "select/s75")
    assert jobs["pretrain/s75"].config["sparsity"]["level"] == 0.75  # type: ignore[index]


def test_a_result_is_finished_before_the_next_is_begun(make) -> None:  # type: ignore[no-untyped-def]
    flow = """
jobs:
  pretrain: {kind: pretrain, set: {training.train_tokens: 4096}, grid: {seed: [1, 2]}}
  densified: {kind: densify, set: {checkpoint: "${jobs.pretrain.run_dir}"}}
  finetune: {kind: finetune, set: {finetune.checkpoint: "${jobs.pretrain.run_dir}", finetune.train: train.csv}}
  report: {kind: report, needs: [finetune]}
"""
    assert [job.id for job in results_first(list(make(flow).values()))] == [
        *("pretrain/seed=1", "densified/seed=1", "pretrain/seed=2", "densified/seed=2"),
        *("finetune/seed=1", "finetune/seed=2", "report"),
    ]


def test_keys_follow_inputs_alone(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before = {name: job.key for name, job in make(GOOD).items()}
    same = {name: job.key for name, job in make(GOOD, "jobs.pretrain.resources.nodes=4").items()}
    assert same == before
    spelled = {name: job.key for name, job in make(GOOD.replace("1e-4, 5e-5", "0.0001, 0.00005")).items()}
    assert spelled == before
    changed = {name: job.key for name, job in make(GOOD, "variants.s75.sparsity.level=0.5").items()}
    assert changed["pretrain/dense"] == before["pretrain/dense"]
    assert changed["pretrain/s75"] != before["pretrain/s75"] and changed["report"] != before["report"]
    (tmp_path / "train.csv").write_text("mr,ref\nx,y\n")
    touched = {name: job.key for name, job in make(GOOD).items()}
    assert touched["pretrain/s75"] == before["pretrain/s75"]
    assert touched["finetune/s75/seed=1,lr=0.0001"] != before["finetune/s75/seed=1,lr=0.0001"]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ("", {"pretrain", "finetune"}),
        ("jobs.finetune.set.training.optimizer=muon", {"pretrain"}),
        ("variants.dense.training.optimizer=muon", set()),
    ],
)
def test_a_new_config_key_makes_no_job_run_again(make, tmp_path: Path, changed: str, kept: set[str]) -> None:  # type: ignore[no-untyped-def]
    ids = {"pretrain": "pretrain/dense", "finetune": "finetune/dense/seed=1,lr=0.0001"}
    before = make(GOOD)
    for job in (before[job_id] for job_id in ids.values()):
        spec = json.loads(json.dumps(dataclasses.asdict(job)).replace(str(tmp_path / "work"), "/before/the/move"))
        del spec["config"]["training"]["optimizer"]  # a key that the version before did not have
        parents = {need: f"written key of {need}" for need in job.needs}
        folder = tmp_path / "work/jobs" / job.id
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps(spec | {"key": f"written key of {job.id}", "parents": parents}))
    after = make(GOOD, *[changed] * bool(changed))
    assert {name for name, job_id in ids.items() if after[job_id].key == f"written key of {job_id}"} == kept


def test_named_bundles_and_per(make) -> None:  # type: ignore[no-untyped-def]
    bundle = "task: [{name: e2e, set: {finetune.task: e2e}}, {name: web, set: {finetune: {task: webnlg}}}]"
    text = GOOD.replace("seed: [1, 2]", bundle).replace("metric: val_loss", "metric: val_loss, per: task")
    jobs = make(text)
    assert jobs["finetune/s75/task=web,lr=0.0001"].config["finetune"]["task"] == "webnlg"  # type: ignore[index]
    assert set(jobs["select/s75/task=e2e"].needs) == {
        "finetune/s75/task=e2e,lr=0.0001",
        "finetune/s75/task=e2e,lr=5e-05",
    }


def test_ranks_of_a_launcher_set_data_parallelism(make) -> None:  # type: ignore[no-untyped-def]
    more = (
        "jobs.pretrain.set.training.micro_batch_size=2",
        "jobs.pretrain.resources={nodes: 2, ranks_per_node: 2, tensor: 2}",
    )
    job = make(GOOD, *more, ranks_from_launcher=True)["pretrain/s75"]
    assert {"tensor": 2, "data": 2, "zero_stage": 1}.items() <= job.config["parallel"].items()  # type: ignore[index]
    assert make(GOOD, *more)["pretrain/s75"].config["parallel"]["data"] is None  # type: ignore[index]


WRONG = {
    "cycle": ("jobs.pretrain.needs=[report]", "the jobs form a cycle: pretrain -> report -> select -> finetune ->"),
    "unknown job": ("jobs.report.needs=[selekt]", "needs unknown job 'selekt', did you mean 'select'?"),
    "unknown kind": ("jobs.report.kind=raport", "unknown kind 'raport', did you mean 'report'?"),
    "unknown grid key": (
        "jobs.finetune.grid.training.lrr=[1]",
        "unknown config key 'training.lrr', did you mean 'lr'?",
    ),
    "unknown set key": ("jobs.pretrain.set.model.layers=[1]", "unknown config key 'model.layers'"),
    "unknown job key": ("jobs.pretrain.sets.seed=1", "unknown key 'sets', did you mean 'set'?"),
    "unknown option": ("jobs.report.set.colour=red", "unrecognized arguments: --colour red"),
    "missing file": ("jobs.finetune.set.finetune.train=gone.csv", "gone.csv: No such file or directory"),
    "missing config": ("jobs.pretrain.config=gpt2_smal", "no config 'gpt2_smal'"),
    "bad value": ("jobs.pretrain.set.training.lr=-1", "training.lr: must be positive and finite, got -1"),
    "variant": ("variants.s75.sparsity.level=2", "jobs.pretrain (s75): sparsity.level: must be in [0, 1)"),
    "no output": (
        "jobs.finetune.set.finetune.checkpoint=${jobs.pretrain.model}",
        "a pretrain job has no output 'model'",
    ),
    "no metric": ("jobs.select.set.metric=null", "set.metric: is not set"),
    "environment": ("jobs.finetune.set.finetune.train=${env.NOT_SET_AT_ALL}", "variable NOT_SET_AT_ALL is not set"),
    "open": ("jobs.finetune.set.finetune.train='${jobs.x'", "a reference is not closed"),
    "run_dir": ("jobs.pretrain.set.run_dir=elsewhere", "the launcher chooses where a job runs"),
    "twice": ("jobs.finetune.grid.seed=[1, 1]", "a value is given twice"),
    "not a list": ("jobs.finetune.grid.seed=1", "expected a list of values, got 1"),
    "ranks": ("jobs.report.resources.ranks_per_node=2", "a report job is one process, not 2"),
    "time": ("jobs.pretrain.resources.time=3600", "write it in quotes"),
    "mem": ("jobs.pretrain.resources.mem=-5G", "mem: write a number and K, M, G or T, such as 64G, not"),
    "throttle": ("jobs.pretrain.resources.throttle=0", "throttle: must be 1 to 1000000, got 0"),
    "signal": ("jobs.pretrain.resources.signal_seconds=-1", "signal_seconds: must be 1 to 1000000, got -1"),
    "resources": ("jobs.pretrain.resources.node=2", "unknown config key 'node', did you mean 'nodes'?"),
    "cluster": ("cluster=big", "no cluster 'big'"),
    "option": ("clusters.a.sbatch=[--x; rm]", "is not an option"),
    "name": ("jobs.pre train.kind=pretrain", "is not a name"),
    "long name": (f"jobs.{'x' * 101}.kind=pretrain", "101 characters are too many for a name"),
    "variant's misspelt job": (
        "variants.s75.data.train=${jobs.pretrian.run_dir}",
        "needs unknown job 'pretrian', did you mean 'pretrain'?",
    ),
    "variant's circle": ("variants.s75.data.train=${jobs.report.dir}", "the jobs form a cycle: pretrain -> report"),
    "select of nothing": ("jobs.select.needs=[]", "needs: is empty: name the jobs to choose among"),
    "clusters": ("cluster=[a]", "no cluster '['a']'"),
    "grid key": (
        "jobs.finetune.grid={x/y: [{name: a, set: {seed: 1}}]}",
        "jobs.finetune.grid.x/y: 'x/y' is not a name",
    ),
    "path as a grid key": (
        "jobs.finetune.grid={../../ESC/x: [{name: a, set: {seed: 1}}], a.../../ESC/x: [{name: b, set: {seed: 2}}]}",
        "is not a name: use letters, digits, - and _",
    ),
    "per": ("jobs.select.set.per=[[a]]", "is not a grid key of the jobs that it needs"),
    "top": ("job.x=1", "unknown key 'job', did you mean 'jobs'?"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_input_is_one_clear_line(make, case: str) -> None:  # type: ignore[no-untyped-def]
    override, expected = WRONG[case]
    with pytest.raises(UserError) as caught:
        make(GOOD, override)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tensor", ["0", "abc", "-1", "1.5"])
def test_tensor_parallelism_of_nothing(make, tensor: str) -> None:  # type: ignore[no-untyped-def]
    more = (f"jobs.pretrain.set.parallel.tensor={tensor}", "jobs.pretrain.resources.ranks_per_node=2")
    with pytest.raises(UserError, match=r"parallel\.tensor: must be a whole number, 1 or more"):
        make(GOOD, *more, ranks_from_launcher=True)


@pytest.mark.parametrize("job_id", ["../x", "a/../../x", "/x", ""])
def test_a_job_lies_inside_of_its_workflow(tmp_path: Path, job_id: str) -> None:
    with pytest.raises(UserError, match="its folder would lie outside"):
        job_folder(tmp_path, job_id)


def test_a_variant_that_refers_to_a_job_needs_it(make) -> None:  # type: ignore[no-untyped-def]
    flow = """
variants:
  plain: {training.lr: 1e-3}
  own: {data.train: "${jobs.packed.dir}"}
jobs:
  pretrain: {kind: pretrain, set: {training.train_tokens: 4096}}
  packed: {kind: pack, set: {input: train.csv, tokenizer: train.csv}}
"""
    jobs = make(flow)
    assert jobs["pretrain/own"].needs == ("packed",) and jobs["pretrain/plain"].needs == ()
    before = make(flow.replace("kind: pretrain,", "kind: pretrain, needs: [packed],"))
    assert before["pretrain/own"].key == jobs["pretrain/own"].key


def test_keys_leave_out_what_a_run_may_change_and_nothing_else(make) -> None:  # type: ignore[no-untyped-def]
    job = make(GOOD)["pretrain/s75"]
    assert make(GOOD, "jobs.pretrain.set.validation.interval=3")["pretrain/s75"].key == job.key
    assert make(GOOD, "jobs.pretrain.set.validation.batches=3")["pretrain/s75"].key != job.key


def test_a_run_folder_counts_by_its_newest_checkpoint(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    flow = GOOD.replace("${jobs.pretrain.run_dir}", str(tmp_path / "run"))
    for step in (5, 10):
        folder = tmp_path / f"run/checkpoints/step_{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(f'{{"step": {step}}}')
    cell = "finetune/seed=1,lr=0.0001"
    before = make(flow)[cell].key
    (tmp_path / "run/hypotheses.txt").write_text("generated since")
    assert make(flow)[cell].key == before
    (folder / "manifest.json").write_text('{"step": 10, "other": 1}')
    assert make(flow)[cell].key != before


def test_a_grid_job_cannot_stand_for_one(make) -> None:  # type: ignore[no-untyped-def]
    text = GOOD + "  once: {kind: report, needs: [finetune], set: {out: x}}\n"
    with pytest.raises(UserError, match="the launcher chooses where a job writes"):
        make(text)
    text = GOOD.replace("needs: [select]", "needs: [select], set: {title: '${jobs.finetune.run_dir}'}")
    with pytest.raises(UserError, match="'finetune' is 8 jobs here: choose one with a select job"):
        make(text)


def test_a_job_takes_over_a_value_of_its_parent_s_cell(make) -> None:  # type: ignore[no-untyped-def]
    tuning = "set: {finetune.checkpoint: '${jobs.finetune.run_dir}', finetune.train: train.csv, "
    text = GOOD + "  again: {kind: finetune, " + tuning + "seed: '${jobs.finetune.grid.KEY}'}}\n"
    jobs = make(text.replace("KEY", "seed"))
    again = [job for job in jobs.values() if job.name == "again"]
    assert again and all(job.config and str(job.config["seed"]) == job.cell["seed"] for job in again)
    with pytest.raises(UserError, match="no grid key 'sed', did you mean 'seed'"):
        make(text.replace("KEY", "sed"))


def test_references_never_read_their_result_again() -> None:
    hostile = "${jobs.other.secret} $(rm -rf /) ; 'x'"
    assert substitute("a ${jobs.x.y} b", lambda parts: hostile, final=True) == f"a {hostile} b"
    kept = substitute("${jobs.x.y} ${jobs.s.t.u}", lambda parts: hostile if len(parts) == 3 else None, final=False)
    assert list(references(kept)) == [("jobs", "s", "t", "u")]
    assert substitute(kept, lambda parts: "late", final=True) == f"{hostile} late"
    assert substitute(escape(hostile), lambda parts: "never", final=True) == hostile


def test_value_names_are_file_names() -> None:
    assert value_name("1e-4") == value_name(0.0001) == "0.0001"
    assert value_name(5e-5) == "5e-05" and value_name(8) == "8" and value_name(True) == "True"
    assert "/" not in value_name("a/../b") and value_name("a/b") != value_name("a-b")
    assert value_name("..") not in (".", "..")


def test_shipped_workflows_are_plans(make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    jobs = plan(load_workflow("demo"), tmp_path / "work", False)
    assert {job.variant for job in jobs} == {None, "dense", "s75", "untrained"}
    assert next(job for job in jobs if job.id == "pretrain/untrained").steps == 0


def test_examples_of_the_docs_are_plans(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("data/00.jsonl.zst", "data/e2e/trainset.csv", "data/e2e/devset.csv", "data/gpt2/encoder.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    docs = Path(__file__).parents[2] / "docs/workflows.md"
    whole, above_demo = re.findall(r"```yaml\n(.*?)```", docs.read_text(), re.DOTALL)
    for ranks_from_launcher in (False, True):
        assert len(make(whole, ranks_from_launcher=ranks_from_launcher)) == 1 + 2 + 24 + 2
    assert {job.variant for job in make(above_demo).values()} == {None, "dense", "s50", "s75"}


def test_a_base_is_found_as_a_workflow_is(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "own.yaml").write_text("base: gpt3_xl_e2e\nvariants: {s50: null}\n")
    (tmp_path / "flow.yaml").write_text("base: own.yaml\nvariants: {dense: null}\n")
    workflow = load_workflow(str(tmp_path / "flow.yaml"))
    assert list(workflow.variants) == ["s75"] and "densified" in workflow.jobs
    (tmp_path / "own.yaml").write_text("base: flow.yaml\n")
    with pytest.raises(UserError, match="forms a cycle"):
        load_workflow(str(tmp_path / "flow.yaml"))


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("perplexity_per_word", "min"), ("perplexity", "min"), ("val_loss", "min"), ("ter", "min"), ("bleu", "max")],
)
def test_the_direction_of_a_metric_is_known_from_its_task(make, metric: str, mode: str) -> None:  # type: ignore[no-untyped-def]
    jobs = make(GOOD, f"jobs.select.set.metric={metric}")
    assert jobs["select/s75"].select == {"metric": metric, "mode": mode}


def test_a_job_scores_a_checkpoint_with_the_evaluation_harness(tmp_path: Path) -> None:
    settings = {"checkpoint": "runs/pretrain", "tasks": ["piqa", "arc_easy"], "limit": 10}
    arguments = command_arguments(KINDS["eval"], settings, tmp_path)
    expected = ["eval", "runs/pretrain", "--tasks", "piqa", "arc_easy", "--limit", "10", "--json"]
    assert arguments == expected
    check_arguments(arguments)
