"""The dry run's plan, the estimator and its command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spdf_dist.accounting.communication import communication
from spdf_dist.accounting.estimate import Cluster, estimate, layouts
from spdf_dist.accounting.flops import training_flops
from spdf_dist.accounting.hardware import GPUS, find_gpu, recognise_gpu
from spdf_dist.accounting.layout import Layout, layout_of
from spdf_dist.accounting.memory import activation_bytes, memory, structure_bytes
from spdf_dist.accounting.plan import TaskSize, finetuning_plan, plan, plan_text
from spdf_dist.cli.main import main
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import FinetuneConfig, ModelConfig, PretrainConfig, SparsityConfig

XL = load_config(PretrainConfig, "gpt3_xl_s75")
CLUSTER = Cluster(4, 8, find_gpu("h100"))


def test_state_of_the_linears_at_75_percent_is_a_quarter_and_the_indices() -> None:
    """Dense: 16 bytes per weight (value, gradient, moments). Compressed: 16 bytes per kept value, and its index."""
    model = ModelConfig(num_layers=4, hidden_size=1024, num_attention_heads=8, seq_length=8, vocab_size=8)
    layout = Layout(1, 1, 0, 1, "compressed", "fp32", False)
    sparsity = SparsityConfig(level=0.75)
    sparse = memory(model, sparsity, layout)
    dense = memory(model, None, replace(layout, execution="dense"))
    state = ("weights", "masters", "moments", "gradients", "indices")
    share = sum(sparse[part] for part in state) / sum(dense[part] for part in state)
    assert 0.30 < share < 0.35


def test_indices_are_what_the_kernels_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from spdf_kernels import SparsityPattern, describe

    monkeypatch.setenv("SPDF_KERNELS_BACKEND", "torch")
    model = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=2, seq_length=8, vocab_size=8)
    sparsity = SparsityConfig(level=0.75)
    layout = Layout(1, 1, 0, 1, "compressed", "fp32", False)
    held = 0
    for rows, columns in ((96, 32), (32, 32), (128, 32), (32, 128)):
        mask = torch.zeros(rows * columns, dtype=torch.bool)
        mask[: rows * columns // 4] = True
        held += describe(SparsityPattern.from_mask(mask.view(rows, columns))).index_bytes
    assert structure_bytes(model, sparsity, layout, "cpu")["indices"] == held


def test_masks_cost_a_byte_an_entry_and_only_where_masked() -> None:
    layout = layout_of(XL, 32)
    assert structure_bytes(XL.model, XL.sparsity, layout, "cuda") == {
        "masks": 24 * 12 * 2048**2,
        "indices": 0,
        "code": 0,
    }


@pytest.mark.parametrize(("present", "each"), [(["avx2", "avx512f"], 20), (["avx2"], 48), ([], 0)])
def test_code_is_that_of_the_machines_instruction_set(
    present: list[str], each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spdf_dist.accounting.memory.cpu_features", lambda: present)
    model = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=2, seq_length=8, vocab_size=8)
    layout = Layout(1, 1, 0, 1, "compressed", "fp32", False)
    code = structure_bytes(model, SparsityConfig(level=0.75), layout, "cpu")["code"]
    assert code == each * 12 * 32**2 // 4
    assert structure_bytes(model, SparsityConfig(level=0.75), layout, "cuda")["code"] == 0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_stages_divide_what_they_should(stage: int) -> None:
    one, many = (memory(XL.model, None, Layout(1, n, stage, 1, "dense", "fp32", False)) for n in (1, 8))
    whole = memory(XL.model, None, Layout(1, 1, 1, 1, "dense", "fp32", False))["weights"]
    assert many["weights"] == one["weights"]
    assert (many["weights"] < whole / 4) == (stage == 3)
    assert (many["moments"] < one["moments"]) == (stage >= 1)
    assert (many["gradients"] < one["gradients"]) == (stage >= 2)


def test_recomputation_trades_activations_for_flops() -> None:
    layout = replace(layout_of(XL, 32), activation_checkpointing=False)
    plain, again = (
        activation_bytes(XL.model, replace(layout, activation_checkpointing=flag)) for flag in (False, True)
    )
    assert again["layers"] < plain["layers"] / 8


def test_traffic_shrinks_with_density() -> None:
    dense, sparse = (
        communication(XL.model, XL.sparsity, replace(layout_of(XL, 32), execution=name), 512)["data_sent"]
        for name in ("masked", "compressed")
    )
    assert sparse / dense == pytest.approx(409_753_600 / 1_315_723_264, rel=1e-3)


def test_plan_of_the_papers_model() -> None:
    summary = plan(XL, 32)
    assert (summary["steps"], summary["warmup_steps"], summary["tokens_per_step"]) == (24_796, 358, 2**20)
    assert summary["layout"]["accumulation"] == 512 // (4 * 32)
    assert summary["memory_bytes"]["total"] == sum(v for k, v in summary["memory_bytes"].items() if k != "total")
    assert json.loads(json.dumps(summary))["schema_version"] == 1
    text = plan_text(summary)
    assert "1,315,723,264" in text and "24,796 steps" in text and "tensor 1 x data 32" in text


def test_plan_of_fine_tuning_is_that_of_pre_training_where_all_sequences_are_full() -> None:
    keep = ["finetune.keep_mask=true", "training.optimizer=muon", "parallel.zero_stage=1", "device=cuda"]
    batch = [f"training.{key}={getattr(XL.training, key)}" for key in ("global_batch_size", "micro_batch_size")]
    same = [f"training.precision={XL.training.precision}", f"sparsity.execution={XL.sparsity.execution}"]
    config = load_config(FinetuneConfig, "finetune/e2e", [*keep, *batch, *same])
    full, count = XL.model.seq_length, XL.training.global_batch_size
    size = TaskSize([full] * count, full * count, [full] * 8, steps_per_epoch=1, steps=3, tokens=3 * full * count)
    found = finetuning_plan(config, XL.model, XL.sparsity, 32, "cuda", size)
    muon = replace(XL, training=replace(XL.training, optimizer="muon", activation_checkpointing=False))
    wanted = plan(replace(muon, parallel=replace(XL.parallel, zero_stage=1)), 32)
    for key in ("parameters", "nonzeros", "memory_bytes", "layout", "communication_bytes_per_step", "flops_per_step"):
        assert found[key] == wanted[key], key
    assert found["executed_flops_per_step"] == pytest.approx(wanted["executed_flops_per_step"])
    assert found["validation"]["flops"] == 8 * training_flops(XL.model, XL.sparsity) // 3
    assert (found["epochs"], found["validation"]["times"]) == (3, 3)


def test_plan_refuses_a_world_that_does_not_divide() -> None:
    tensor = load_config(PretrainConfig, "gpt3_xl", ["parallel.tensor=4"])
    with pytest.raises(UserError, match=r"parallel\.tensor"):
        plan(tensor, 6)
    with pytest.raises(UserError, match="global_batch_size"):
        plan(XL, 3)


def test_estimate_scales_with_gpus_and_prices_them() -> None:
    small, large = (estimate(XL, Cluster(n, 8, GPUS["h100"]), 2.0) for n in (2, 4))
    assert small["step_seconds"]["compute"] == pytest.approx(2 * large["step_seconds"]["compute"])
    assert large["cost"] == pytest.approx(large["gpu_hours"] * 2.0)
    assert large["mfu"] < large["assumptions"]["efficiency"]
    assert set(large["memory_by_execution"]) == {"dense", "masked", "compressed"}


def test_best_layouts_fit_and_come_fastest_first() -> None:
    best = estimate(XL, CLUSTER)["best"]
    times = [entry["step_seconds"]["total"] for entry in best]
    assert best and times == sorted(times)
    assert all(entry["memory_bytes"]["total"] <= 0.9 * 80e9 for entry in best)
    for layout in layouts(XL, CLUSTER):
        assert 512 % (layout.micro_batch * layout.data) == 0 and layout.tensor * layout.data == 32
        assert layout.zero_stage > 0  # bf16 with stage 0 is refused by the config


def test_nothing_fits_on_a_tiny_gpu() -> None:
    tiny = replace(GPUS["h100"], memory_bytes=1e9)
    summary = estimate(XL, Cluster(1, 1, tiny))
    assert not summary["fits"] and summary["best"] == []


def test_names_of_gpus() -> None:
    assert recognise_gpu("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert recognise_gpu("NVIDIA A100-SXM4-40GB") is GPUS["a100-40gb"]
    assert recognise_gpu("NVIDIA H100 PCIe") is None
    assert recognise_gpu("Tesla V100-SXM2") is None
    with pytest.raises(UserError, match="did you mean 'h100'"):
        find_gpu("h10")


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ["--nodes", "4", "--gpus-per-node", "8"]
    assert main(["estimate", "gpt3_xl_s75", *cluster, "--gpu-hour-price", "2.5", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["schema_version"] == 1 and summary["gpus"] == 32 and summary["cost"] > 0
    assert main(["estimate", "gpt3_xl_s75", *cluster]) == 0
    text = capsys.readouterr().out
    assert text.startswith("ESTIMATE (roofline, not a measurement)") and "Assumed: 40%" in text
    assert main(["estimate", "gpt3_xl_s75", "--nodes", "0", "--gpus-per-node", "8"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["flops", "gpt3_xl_s75", "--json"]) == 0
    flops = json.loads(capsys.readouterr().out)
    assert flops["schema_version"] == 1 and f"{flops['total_flops']:.4g}" == "9.476e+19"
    assert main(["flops", "--paper"]) == 0
    assert "1.4095e+17" in capsys.readouterr().out


def test_finetuning_flops_need_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "finetune/gpt2_small_e2e"]) == 2
    assert "--model" in capsys.readouterr().err
    assert main(["flops", "finetune/gpt2_small_e2e", "--model", "gpt2_small", "--examples", "10", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["sequences"] == 50 and summary["seq_length"] == 512
    assert summary["total_flops"] == 50 * summary["flops_per_sequence"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate", "gpt3_xl", "--efficiency", "5"], "--efficiency"),
        (["estimate", "gpt3_xl", "--efficiency", "nan"], "--efficiency"),
        (["estimate", "gpt3_xl", "--network", "inf"], "--network"),
        (["estimate", "gpt3_xl", "--gpu-hour-price", "-3"], "--gpu-hour-price"),
        (["estimate", "gpt3_xl", "--gpu-hour-price", "nan"], "--gpu-hour-price"),
        (["flops", "finetune/gpt2_small_e2e", "--model", "gpt2_small", "--examples", "-5"], "--examples"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = ["--nodes", "4", "--gpus-per-node", "8"] if arguments[0] == "estimate" else []
    assert main([*arguments, *cluster]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_tensor_parallel_sums_between_nodes_run_at_the_network_s_rate(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(PretrainConfig, "gpt3_xl", ["parallel.tensor=16", "model.num_attention_heads=16"])
    wide, tall = (estimate(config, Cluster(nodes, 32 // nodes, GPUS["h100"])) for nodes in (1, 4))
    seconds = [summary["step_seconds"]["tensor_parallel"] for summary in (wide, tall)]
    assert seconds[1] == pytest.approx(seconds[0] * 450 / 50)
    assert [summary["assumptions"]["tensor_parallel_leaves_the_node"] for summary in (wide, tall)] == [False, True]
    arguments = ["estimate", "gpt3_xl", "parallel.tensor=16", "model.num_attention_heads=16", "--nodes", "4"]
    assert main([*arguments, "--gpus-per-node", "8"]) == 0
    assert "their reductions use the network" in capsys.readouterr().out


def test_estimate_refuses_gpus_that_are_not_those_of_parallel_data(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ["--nodes", "4", "--gpus-per-node", "8"]
    assert main(["estimate", "gpt3_xl_s75", "parallel.data=4", *cluster]) == 2
    error = capsys.readouterr().err
    assert "parallel.data: 4" in error and "32 GPUs" in error and error.count("\n") == 1
    assert main(["estimate", "gpt3_xl_s75", "parallel.data=32", *cluster]) == 0


def test_estimate_refuses_a_batch_that_does_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    for nodes, extra in ((1000, []), (3, []), (1000, ["--json"])):
        assert main(["estimate", "gpt3_xl_s75", "--nodes", str(nodes), "--gpus-per-node", "8", *extra]) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and f"{8 * nodes} GPUs" in error
        assert "training.global_batch_size: 512" in error and "training.micro_batch_size 4" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt2_small", "--examples", "5"], "--examples: does not apply to a pre-training config"),
        (["gpt2_small", "--model", "nope"], "--model: does not apply to a pre-training config"),
        (["--paper", "nope", "--json"], "'nope': does not apply to --paper"),
        (["--paper", "--model", "gpt2_small"], "--model: does not apply to --paper"),
        (["--paper", "--examples", "5"], "--examples: does not apply to --paper"),
    ],
)
def test_flops_refuses_arguments_that_do_not_apply(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flops", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and message in error and error.count("\n") == 1


@pytest.mark.parametrize(("max_steps", "sequences"), [(3, 24), (1000, 50)])
def test_finetuning_flops_end_at_max_steps(max_steps: int, sequences: int, capsys: pytest.CaptureFixture[str]) -> None:
    limits = [f"finetune.max_steps={max_steps}", "training.global_batch_size=8", "finetune.epochs=5"]
    arguments = ["flops", "finetune/gpt2_small_e2e", *limits, "--model", "gpt2_small", "--examples", "10", "--json"]
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["sequences"] == sequences
    assert summary["total_flops"] == sequences * summary["flops_per_sequence"]


def test_flops_of_a_finetuning_from_a_finetuned_run_ask_for_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("finetune:\n  task: e2e\n")
    for checkpoint in (tmp_path, tmp_path / "checkpoints" / "step_1"):
        assert main(["flops", "finetune/gpt2_small_e2e", f"finetune.checkpoint={checkpoint}"]) == 2
        error = capsys.readouterr().err
        assert "name the model with --model CONFIG" in error and error.count("\n") == 1
