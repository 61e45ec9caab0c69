"""Export and import of Llama against transformers' own model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_job import make_tensors, masks_of, save
from safetensors.torch import load_file, save_file

from spdf_dist.checkpoint.densify import densify
from spdf_dist.checkpoint.hf_export import export_hf
from spdf_dist.checkpoint.hf_import import import_hf
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, RopeScaling, SparsityConfig
from spdf_dist.evaluation.decoder import Decoder
from spdf_dist.model.architecture import architecture_of

TIED = ModelConfig(
    family="llama",
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    ffn_hidden_size=40,
    seq_length=24,
    vocab_size=29,
    rope_theta=10_000.0,
)
SCALED = replace(
    TIED,
    num_key_value_heads=4,
    tie_embeddings=False,
    norm_eps=1e-6,
    rope_theta=500.0,
    rope_scaling=RopeScaling(4.0, 1.0, 3.0, 8),
)
LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8}
SPARSE = SparsityConfig(level=0.75, seed=7, targets=list(architecture_of(TIED).targets))


def saved(root: Path, model: ModelConfig, ranks: int, sparsity: SparsityConfig | None) -> Path:
    """A checkpoint with weights large enough that the model prefers some tokens."""
    tensors = make_tensors(masks_of(sparsity, model), model=model)
    for name, tensor in tensors["model"].items():
        tensor.mul_(0.3).add_(1.0 if "ln_" in name else 0.0)
    (folder, *_) = save(root, 5, ranks, sparsity, tensors, model=model)
    assert isinstance(folder, Path), folder
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("model", [TIED, SCALED], ids=["tied", "untied_scaled"])
@pytest.mark.parametrize("form", ["dense", "sparse", "densified"])
def test_logits_greedy_text_and_round_trip(tmp_path: Path, ranks: int, model: ModelConfig, form: str) -> None:
    from transformers import LlamaForCausalLM

    folder = saved(tmp_path / "run", model, ranks, None if form == "dense" else SPARSE)
    if form == "densified":
        densify(folder, tmp_path / "dense")
        folder = tmp_path / "dense"
    name, count = export_hf(folder, tmp_path / "hf", shard_bytes=20_000)
    assert name == "LlamaForCausalLM" and (tmp_path / "hf" / "model.safetensors.index.json").exists()
    theirs, report = LlamaForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    theirs.eval()
    before = Checkpoint(folder)
    ids = torch.randint(0, model.vocab_size, (3, model.seq_length), generator=torch.Generator().manual_seed(1))
    ours = Decoder(model, before.weights())
    with torch.no_grad():
        expected = theirs(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(ours.logits(ids), expected, atol=1e-4, rtol=0)

    import_hf(tmp_path / "hf", tmp_path / "back")
    after = Checkpoint(tmp_path / "back")
    assert after.model == replace(model, num_key_value_heads=model.key_value_heads)
    assert all(torch.equal(after.read(key), tensor) for key, tensor in before.weights().items())


def test_import_what_transformers_wrote(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    scaling = {"rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    sizes: dict[str, Any] = {
        "vocab_size": 29,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    ids = torch.randint(0, 29, (2, 50))
    for tied, rope in ((True, scaling), (False, {"rope_type": "default", "rope_theta": 1000.0})):
        config = LlamaConfig(**sizes, tie_word_embeddings=tied, rope_parameters=rope)
        theirs = LlamaForCausalLM(config).eval()
        theirs.save_pretrained(tmp_path / f"hf_{tied}")
        import_hf(tmp_path / f"hf_{tied}", tmp_path / f"ours_{tied}")
        ours = Checkpoint(tmp_path / f"ours_{tied}")
        assert ours.model.tie_embeddings == tied and ours.model.rope_theta == rope["rope_theta"]
        with torch.no_grad():
            torch.testing.assert_close(
                Decoder(ours.model, ours.weights()).logits(ids), theirs(ids).logits, atol=1e-4, rtol=0
            )


def test_import_through_a_mask_takes_all_seven_matrices(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", TIED, 1, None)
    export_hf(folder, tmp_path / "hf", "bfloat16")
    import_hf(tmp_path / "hf", tmp_path / "out", level=0.75, mask="magnitude")
    found = Checkpoint(tmp_path / "out")
    assert found.sparsity is not None and found.sparsity.targets == ["W_Q", "W_K", "W_V", "W_D", "W_G", "W_I", "W_O"]
    for name in architecture_of(TIED).prunable:
        mask = torch.from_numpy(found.masks[name].copy())
        assert int(mask.sum()) == mask.numel() // 4
    assert torch.equal(found.read("embedding.word"), Checkpoint(folder).read("embedding.word").bfloat16().float())


def test_another_context_window_is_kept_where_positions_are_rotary(tmp_path: Path) -> None:
    export_hf(saved(tmp_path / "run", TIED, 1, None), tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "short", seq_length=8)
    short = Checkpoint(tmp_path / "short")
    assert short.model.seq_length == 8
    short.check_model(replace(short.model, seq_length=16, dropout=0.1))
    with pytest.raises(UserError, match=r"model\.rope_theta is 10000\.0 in the checkpoint and 5\.0 in the config"):
        short.check_model(replace(short.model, rope_theta=5.0))
    with pytest.raises(UserError, match=r"model\.seq_length: must be positive"):
        import_hf(tmp_path / "hf", tmp_path / "none", seq_length=0)
    (learned,) = save(tmp_path / "gpt2", 5)
    export_hf(learned, tmp_path / "hf_gpt2")
    with pytest.raises(UserError, match="--seq-length: applies to rotary positions only"):
        import_hf(tmp_path / "hf_gpt2", tmp_path / "none", seq_length=4)


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"attention_bias": True}, {}, "attention_bias is True"),
        ({"head_dim": 16}, {}, "head_dim is 16"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, {}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, {}, "low_freq_factor is missing"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            {},
            "rope_parameters and rope_scaling differ",
        ),
        ({"rope_scaling": "linear"}, {}, "rope_scaling is not an object: 'linear'"),
        (
            {"rope_scaling": LLAMA3, "original_max_position_embeddings": 4},
            {},
            "original_max_position_embeddings is 4 and, for the rotary positions, 8",
        ),
        ({"tie_word_embeddings": "true"}, {}, "tie_word_embeddings is 'true', neither true nor false"),
        ({"tie_word_embeddings": False}, {}, r"no tensor lm_head\.weight"),
        ({}, {"lm_head.weight": torch.ones(29, 32)}, r"lm_head\.weight differs from model\.embed_tokens\.weight"),
        ({}, {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, r"has no place for 1 .*q_proj\.bias"),
        ({"num_hidden_layers": 1}, {}, "has no place for 9 of the tensors"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], message: str
) -> None:
    export_hf(saved(tmp_path / "run", TIED, 1, None), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    weights = tmp_path / "hf" / "model.safetensors"
    save_file({**load_file(weights), **tensors}, weights)
    with pytest.raises(UserError, match=message) as raised:
        import_hf(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists() and "\n" not in str(raised.value)
