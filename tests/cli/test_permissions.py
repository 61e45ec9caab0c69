"""A path without permission, as input or output, ends each command in one line with exit code 2 and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from spdf_launcher.workflow import Resources

from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig

JOB = {
    **{
        "id": "pretrain",
        "name": "pretrain",
        "kind": "pretrain",
        "variant": None,
        "cell": {},
        "values": {},
        "needs": [],
    },
    **{"arguments": [], "config": None, "outputs": {}, "files": {}, "steps": None, "select": None, "key": ""},
    "resources": asdict(Resources()),
}
"""A job in the plan of a workflow."""
UNREADABLE, UNWRITABLE = 0o000, 0o555
FLOW = """
jobs:
  pretrain: {kind: pretrain, config: config.yaml}
"""
TRAIN = "pretrain config.yaml"
TUNE = "finetune tune.yaml run_dir=new"
GENERATE = "generate run --task e2e --input pairs.csv --greedy --max-new-tokens 2 --out new.txt"
EVALUATE = "evaluate --task e2e --hypotheses hyp.txt --references ref.txt"
PACK = "data pack --input text.jsonl --tokenizer sp.model --seq-len 32 --workers 1"
TOKENIZER = "data tokenizer train --input text.jsonl --vocab-size 300"
CHECKPOINT = "run/checkpoints/step_2"
WEIGHTS = f"{CHECKPOINT}/model-00000.safetensors"
READS = [
    (f"{TRAIN} run_dir=new", "config.yaml"),
    (f"{TRAIN} run_dir=new", "packed"),
    (f"{TRAIN} run_dir=new", "packed/index.json"),
    (f"{TRAIN} run_dir=new", "packed/shard-000000.tar"),
    (f"{TRAIN} run_dir=new deepspeed=more.json", "more.json"),
    (f"{TRAIN} run_dir=new sparsity.pattern=masks.safetensors sparsity.level=0.5", "masks.safetensors"),
    (f"{TRAIN} run_dir=new training.init_from=run", "run"),
    (f"{TRAIN} run_dir=new training.init_from=run", WEIGHTS),
    (f"{TRAIN} run_dir=new --dry-run", "config.yaml"),
    (f"{TRAIN} run_dir=new --dry-run", "packed/index.json"),
    (f"{TRAIN} run_dir=run training.train_tokens=2048 --change", "run"),
    (f"{TRAIN} run_dir=run training.train_tokens=2048 --change", "run/config.yaml"),
    (f"{TRAIN} run_dir=run training.train_tokens=2048 --change", "run/metrics.jsonl"),
    (f"{TRAIN} run_dir=run training.train_tokens=2048 --change", CHECKPOINT),
    (f"{TRAIN} run_dir=run training.train_tokens=2048 --change", WEIGHTS),
    (TUNE, "tune.yaml"),
    (TUNE, "run"),
    (TUNE, f"{CHECKPOINT}/manifest.json"),
    (TUNE, f"{CHECKPOINT}/masks.safetensors"),
    (TUNE, f"{CHECKPOINT}/tokenizer"),
    (TUNE, WEIGHTS),
    (TUNE, "pairs.csv"),
    (f"{TUNE} --dry-run", "pairs.csv"),
    (f"{TUNE} --dry-run", f"{CHECKPOINT}/manifest.json"),
    ("densify run new", "run"),
    ("densify run new", f"{CHECKPOINT}/manifest.json"),
    ("densify run new", WEIGHTS),
    ("inspect run", "run"),
    ("inspect run", f"{CHECKPOINT}/manifest.json"),
    ("inspect run", WEIGHTS),
    ("export-hf run new", f"{CHECKPOINT}/manifest.json"),
    ("export-hf run new", WEIGHTS),
    ("import-hf hf new", "hf"),
    ("import-hf hf new", "hf/config.json"),
    ("import-hf hf new", "hf/model.safetensors"),
    (GENERATE, "run"),
    (GENERATE, WEIGHTS),
    (GENERATE, f"{CHECKPOINT}/tokenizer"),
    (GENERATE, "pairs.csv"),
    (EVALUATE, "hyp.txt"),
    (EVALUATE, "ref.txt"),
    ("perplexity run --data packed", "packed"),
    ("perplexity run --data packed", "packed/shard-000000.tar"),
    ("perplexity run --data text.jsonl", "text.jsonl"),
    ("perplexity run --data text.jsonl", "run"),
    ("perplexity run --task e2e --data pairs.csv", "pairs.csv"),
    ("report run --out new", "run"),
    ("report run --out new", "run/metrics.jsonl"),
    ("report run --out new", "run/config.yaml"),
    (f"{PACK} --out new", "text.jsonl"),
    (f"{PACK} --out new", "sp.model"),
    (f"{TOKENIZER} --out new.model", "text.jsonl"),
    ("data verify packed", "packed"),
    ("data verify packed", "packed/index.json"),
    ("data verify packed", "packed/shard-000000.tar"),
    ("data info packed", "packed"),
    ("data info packed", "packed/index.json"),
    ("data info packed", "packed/shard-000000.tar"),
    ("run flow.yaml --dir new --on local", "flow.yaml"),
    ("run flow.yaml --dir new --on local --dry-run", "config.yaml"),
    ("status flow", "flow"),
    ("status flow", "flow/plan.json"),
    ("status flow", "flow/journal.jsonl"),
    ("status flow", "flow/jobs/pretrain/attempts.jsonl"),
    ("status flow", "flow/jobs/pretrain/manifest.json"),
    ("run flow.yaml --dir flow --on local", "flow"),
    ("run flow.yaml --dir flow --on local", "flow/journal.jsonl"),
    ("report flow --out new", "flow/jobs/pretrain/manifest.json"),
    ("logs flow", "flow"),
    ("cancel flow", "flow"),
    ("config config.yaml", "config.yaml"),
    ("estimate config.yaml --nodes 1 --gpus-per-node 1", "config.yaml"),
    ("flops config.yaml", "config.yaml"),
    ("coord-check config.yaml --out new", "config.yaml"),
]
"""Commands, and the path that they may not read."""
WRITES = [
    f"{TRAIN} run_dir=locked/new",
    f"{TRAIN} run_dir=locked",
    "finetune tune.yaml run_dir=locked/new",
    "densify run locked/new",
    "export-hf run locked/new",
    "import-hf hf locked/new",
    GENERATE.replace("new.txt", "locked/new.txt"),
    f"{GENERATE} --references-out locked/new.txt",
    "report run --out locked/new",
    "report run --out locked",
    f"{PACK} --out locked/new",
    f"{TOKENIZER} --out locked/new.model",
    "data synthetic-e2e --seed 1 --out locked/new",
    "data python-text --max-mb 0.01 --out locked/new.jsonl",
    "run flow.yaml --dir locked/new --on local",
    "run flow.yaml --dir locked --on local",
    "coord-check config.yaml --out locked/new",
]
"""Commands that write below a folder that is read-only."""
CASES = [(command, path, UNREADABLE) for command, path in READS] + [(c, "locked", UNWRITABLE) for c in WRITES]
NAMES = [f"{command} | {path}" for command, path, _ in CASES]


@pytest.fixture(scope="module")
def world(tiny_config: Path, tiny_data, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """A folder with one of each input, by relative paths."""
    from spdf_dist.checkpoint.hf_export import export_hf
    from spdf_dist.training.pretrain import pretrain

    root = tmp_path_factory.mktemp("world")
    shutil.copytree(tiny_data.train, root / "packed")
    shutil.copy(tiny_data.tokenizer, root / "sp.model")
    config = tiny_config.read_text().replace(str(tiny_data.train), "packed")
    config = config.replace(f", validation: {tiny_data.validation}", "").replace("6144", "1024").replace("1024}", "0}")
    (root / "config.yaml").write_text(config)
    (root / "flow.yaml").write_text(FLOW)
    (root / "more.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        pretrain(load_config(PretrainConfig, "config.yaml", ["run_dir=run", "parallel.data=1"]), SINGLE_PROCESS)
        export_hf("run", Path("hf"))
    rows = [f'"name[House {n}], area[street]","The house has {n} windows."' for n in range(3)]
    (root / "pairs.csv").write_text("mr,ref\n" + "\n".join(rows) + "\n")
    (root / "tune.yaml").write_text(
        "device: cpu\nfinetune: {checkpoint: run, train: pairs.csv, epochs: 1, warmup_steps: 0}\n"
        "training: {global_batch_size: 2, micro_batch_size: 2}\nparallel: {data: 1}\n"
    )
    (root / "text.jsonl").write_text("".join(json.dumps({"text": f"House {n} is red."}) + "\n" for n in range(300)))
    (root / "hyp.txt").write_text("a house\na house\n")
    (root / "ref.txt").write_text("a house\n\na house\n")
    shutil.copyfile(root / WEIGHTS, root / "masks.safetensors")
    job = root / "flow/jobs/pretrain"
    job.mkdir(parents=True)
    plan = {"on": "local", "jobs": [JOB]}
    for path, content in (("plan.json", plan), ("jobs/pretrain/job.json", JOB), ("jobs/pretrain/manifest.json", {})):
        (root / "flow" / path).write_text(json.dumps(content))
    for empty in ("journal.jsonl", "jobs/pretrain/attempts.jsonl"):
        (root / "flow" / empty).touch()
    (root / "locked").mkdir()
    return root


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture(scope="module")
def results(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, list[str]]]:
    """Exit code, standard error and new paths of each case. One process runs them all."""
    root = tmp_path_factory.mktemp("cases")
    for number, (_, path, mode) in enumerate(CASES):
        shutil.copytree(world, root / str(number))
        (root / str(number) / path).chmod(mode)
    before = tree(world)
    commands = root / "commands.json"
    commands.write_text(json.dumps([command.split() for command, _, _ in CASES]))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("unprivileged.py"), root, commands],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = []
    for number, ((code, errors), (_, path, _)) in enumerate(zip(json.loads(done.stdout), CASES, strict=True)):
        (root / str(number) / path).chmod(0o755)
        found.append((code, errors, [path for path in tree(root / str(number)) if path not in before]))
    return found


@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_a_path_without_permission_is_one_line_and_exit_code_2(
    number: int, results: list[tuple[int, str, list[str]]]
) -> None:
    code, errors, left = results[number]
    path = Path(CASES[number][1]).name
    assert code == 2, errors
    assert len(errors.splitlines()) == 1 and path in errors, errors
    assert left == []
