"""Export and import against transformers' own GPT-2."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoint_job import MODEL, SPARSE, make_tensors, masks_of, save, save_with_tokenizer, write_gpt2_tokenizer
from safetensors.torch import load_file, save_file

from spdf_dist.checkpoint.hf_export import export_hf
from spdf_dist.checkpoint.hf_import import import_hf
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.stream import to_bfloat16
from spdf_dist.config.errors import UserError
from spdf_dist.data.tokenizer import Tokenizer, load_tokenizer
from spdf_dist.data.tokenizer_training import train_sentencepiece


def plain_gpt(checkpoint: Checkpoint, ids_BT: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of our weights, computed in plain torch. B batch, T time, H heads, D width of a head."""
    model, w = checkpoint.model, checkpoint.weights()
    batch, length = ids_BT.shape
    x_BTd = w["embedding.word"][ids_BT] + w["embedding.position"][:length]

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.view(batch, length, model.num_attention_heads, -1).transpose(1, 2)

    for i in range(model.num_layers):
        at = {name.split(".", 2)[2]: t for name, t in w.items() if name.startswith(f"layers.{i}.")}
        y = F.layer_norm(x_BTd, (model.hidden_size,), at["ln_1.weight"], at["ln_1.bias"], 1e-5)
        q, k, v = (heads(F.linear(y, at[f"W_{x}"], at[f"b_{x}"])) for x in "QKV")
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, -1)
        x_BTd = x_BTd + F.linear(attended, at["W_D"], at["b_D"])
        y = F.layer_norm(x_BTd, (model.hidden_size,), at["ln_2.weight"], at["ln_2.bias"], 1e-5)
        y = F.gelu(F.linear(y, at["W_I"], at["b_I"]), approximate="tanh")
        x_BTd = x_BTd + F.linear(y, at["W_O"], at["b_O"])
    x_BTd = F.layer_norm(x_BTd, (model.hidden_size,), w["ln_f.weight"], w["ln_f.bias"], 1e-5)
    return x_BTd @ w["embedding.word"].T


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("sparsity", [None, SPARSE], ids=["dense", "sparse"])
def test_logits_and_greedy_text_equal(tmp_path: Path, ranks: int, sparsity: Any) -> None:
    from transformers import GPT2LMHeadModel

    (folder, *_) = save(tmp_path / "run", 5, ranks, sparsity)
    export_hf(folder, tmp_path / "hf")
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    theirs.eval()
    ours = Checkpoint(folder)
    ids = torch.randint(0, MODEL.vocab_size, (3, MODEL.seq_length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain_gpt(ours, ids)
        found = theirs(ids).logits
    assert expected.std() > 1  # far from constant, so that the comparison can fail
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    text = ids[:, :2]
    while text.shape[1] < MODEL.seq_length:
        text = torch.cat([text, plain_gpt(ours, text)[:, -1].argmax(-1, keepdim=True)], dim=1)
    found = theirs.generate(
        ids[:, :2], max_length=MODEL.seq_length, do_sample=False, attention_mask=torch.ones(3, 2), pad_token_id=0
    )
    assert torch.equal(found, text)


@pytest.mark.parametrize("ranks", [1, 2])
def test_round_trip(tmp_path: Path, ranks: int) -> None:
    (folder, *_) = save(tmp_path / "run", 5, ranks)
    export_hf(folder, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "back")
    before, after = Checkpoint(folder), Checkpoint(tmp_path / "back")
    assert after.model == before.model and after.step == 0
    assert all(torch.equal(after.read(name), tensor) for name, tensor in before.weights().items())
    manifest = Checkpoint(tmp_path / "back").manifest
    assert manifest.kind == "imported" and manifest.sparsity is None and not manifest.masks


def test_import_what_transformers_wrote(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=29, n_positions=12, n_embd=16, n_layer=2, n_head=4)).eval()
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    ids = torch.randint(0, 29, (2, 12))
    for form in ("one", "many"):
        import_hf(tmp_path / form, tmp_path / f"ours_{form}")
        with torch.no_grad():
            torch.testing.assert_close(
                plain_gpt(Checkpoint(tmp_path / f"ours_{form}"), ids), theirs(ids).logits, atol=1e-5, rtol=1e-5
            )


def test_names_without_prefix_and_buffers_are_taken(tmp_path: Path) -> None:
    """The layout of the published GPT-2."""
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file({**tensors, "h.0.attn.bias": torch.ones(1, 1, 6, 6)}, path)
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert torch.equal(Checkpoint(tmp_path / "back").read("layers.1.W_K"), Checkpoint(folder).read("layers.1.W_K"))


def test_import_through_the_random_mask(tmp_path: Path) -> None:
    tensors = make_tensors({})
    (folder,) = save(tmp_path / "run", 5, sparsity=None, tensors=tensors)
    export_hf(folder, tmp_path / "hf")
    assert import_hf(tmp_path / "hf", tmp_path / "out", level=0.75, seed=SPARSE.seed) == 864
    found = Checkpoint(tmp_path / "out")
    assert found.sparsity == SPARSE
    for name, mask in masks_of(SPARSE).items():
        assert (found.masks[name] == mask).all()
        kept = torch.from_numpy(mask)
        assert torch.equal(found.read(name), torch.where(kept, tensors["model"][name], 0.0))
    assert torch.equal(found.read("embedding.word"), tensors["model"]["embedding.word"])


def test_a_seed_that_no_config_can_hold_is_refused(tmp_path: Path) -> None:
    """The checkpoint that it made could not be read."""
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    with pytest.raises(UserError, match="--seed 99999999999999999999: is too large"):
        import_hf(tmp_path / "hf", tmp_path / "out", level=0.5, seed=99999999999999999999)
    assert not (tmp_path / "out").exists()


def test_import_through_a_magnitude_mask(tmp_path: Path) -> None:
    tensors = make_tensors({})
    tensors["model"]["layers.0.W_Q"] = torch.ones(8, 8)  # all tied: the first ones are kept
    (folder,) = save(tmp_path / "run", 5, sparsity=None, tensors=tensors)
    export_hf(folder, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "out", level=0.9, mask="magnitude")
    found = Checkpoint(tmp_path / "out")
    assert found.manifest.source is not None and found.manifest.source["mask"] == "magnitude"
    for name in masks_of(SPARSE):
        weight, mask = tensors["model"][name], torch.from_numpy(found.masks[name].copy())
        assert int(mask.sum()) == weight.numel() - weight.numel() * 9 // 10
        assert weight[mask].abs().min() >= weight[~mask].abs().max()
    assert found.masks["layers.0.W_Q"].reshape(-1)[:7].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "gelu"}, "activation_function is 'gelu', not gelu_new"),
        ({"model_type": "gptj"}, "model_type is 'gptj'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"layer_norm_epsilon": 0}, "model.norm_eps: must be between 0 and 1"),
        ({"n_embd": 12}, "which does not fit config.json"),
        ({"n_layer": 3}, r"no tensor transformer\.h\.2\.ln_1\.weight"),
        ({"n_head": 3}, "model.num_attention_heads"),
        ({"n_layer": float("inf")}, "n_layer is inf, not a whole number"),
        ({"n_layer": 2.5}, "n_layer is 2.5, not a whole number"),
        ({"n_layer": "2"}, "n_layer is '2', not a whole number"),
        ({"n_layer": 1e300}, "n_layer is 1e.300, which is too large"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon is '1e-5', not a number"),
        ({"num_hidden_layers": 1}, "n_layer is 2 and num_hidden_layers, its other name, is 1"),
        ({"architectures": ["OPTForCausalLM"]}, "another model than model_type 'gpt2'"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "auto_map: code in the folder computes this model"),
        ({"quantization_config": {"quant_method": "gptq"}}, "a quantised model cannot be imported"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message) as raised:
        import_hf(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists() and "\n" not in str(raised.value)


def test_a_wrapped_model_is_named(tmp_path: Path) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    for wrapper in ("module.", "_orig_mod.module."):
        save_file({wrapper + name: tensor for name, tensor in tensors.items()}, path)
        with pytest.raises(UserError, match=f"the name of each tensor begins with '{wrapper}'"):
            import_hf(tmp_path / "hf", tmp_path / "out")


def test_other_dropouts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resid_pdrop": 0.25, "attn_pdrop": 0.5}))
    import_hf(tmp_path / "hf", tmp_path / "out")
    assert "the model has one dropout here, 0.25; not imported: attn_pdrop 0.5" in capsys.readouterr().err
    assert Checkpoint(tmp_path / "out").model.dropout == 0.25


def test_pointers_of_git_lfs_and_missing_shards_are_named(tmp_path: Path) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf", shard_bytes=2000)
    first, *_ = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    first.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(UserError, match="is a git-lfs pointer: run `git lfs pull`"):
        import_hf(tmp_path / "hf", tmp_path / "out")
    first.unlink()
    with pytest.raises(UserError, match=r"model-00001-.* is missing, and model\.safetensors\.index\.json names it"):
        import_hf(tmp_path / "hf", tmp_path / "out")


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    word = tensors["transformer.wte.weight"]
    for extra, message in (
        ({"lm_head.weight": word + 1}, r"lm_head\.weight differs from transformer\.wte\.weight"),
        (
            {"transformer.h.0.attn.c_attn.lora_A": torch.ones(2, 8)},
            r"has no place for 1 .* as transformer\.h\.0\..*lora_A",
        ),
        ({"transformer.h.2.ln_1.weight": torch.ones(8)}, r"has no place for 1 of the tensors, as transformer\.h\.2"),
        ({"h.0.ln_1.weight": torch.ones(8)}, r"holds transformer\.h\.0\.ln_1\.weight twice"),
        (
            {"transformer.ln_f.bias": torch.ones(8, dtype=torch.int8)},
            r"ln_f\.bias is stored as int8: a quantised model",
        ),
        (
            {"transformer.ln_f.bias": torch.ones(8).to(torch.float8_e4m3fn)},
            r"ln_f\.bias is stored as float8_e4m3fn: a quantised model",
        ),
    ):
        save_file({**tensors, **extra}, path)
        with pytest.raises(UserError, match=message) as raised:
            import_hf(tmp_path / "hf", tmp_path / "out")
        assert not (tmp_path / "out").exists() and "\n" not in str(raised.value)
    save_file(tensors, path)
    (tmp_path / "hf" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        import_hf(tmp_path / "hf", tmp_path / "out")
    (tmp_path / "hf" / "adapter_config.json").unlink()
    only_head = {name: tensor for name, tensor in tensors.items() if "wte" not in name} | {"lm_head.weight": word}
    for number, kept in enumerate((only_head, {**tensors, "lm_head.weight": word.clone()})):
        save_file(kept, path)
        import_hf(tmp_path / "hf", tmp_path / f"out_{number}")
        assert torch.equal(Checkpoint(tmp_path / f"out_{number}").read("embedding.word"), word)


def test_shards_and_bfloat16(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    (folder,) = save(tmp_path / "run", 5)
    _, count = export_hf(folder, tmp_path / "one", "bfloat16")
    export_hf(folder, tmp_path / "many", shard_bytes=2000)
    assert not (tmp_path / "many" / "model.safetensors").exists()
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = {path.name: path.stat().st_size for path in (tmp_path / "many").glob("model-*.safetensors")}
    assert set(index["weight_map"].values()) == set(files) and len(files) > 2
    assert index["metadata"]["total_size"] == 4 * count
    one, many = (GPT2LMHeadModel.from_pretrained(tmp_path / name, dtype="auto") for name in ("one", "many"))
    assert one.dtype == torch.bfloat16 and many.dtype == torch.float32
    for name, tensor in many.state_dict().items():
        assert torch.equal(one.state_dict()[name], tensor.bfloat16())
    import_hf(tmp_path / "many", tmp_path / "back")
    before, after = Checkpoint(folder).weights(), Checkpoint(tmp_path / "back").weights()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with pytest.raises(UserError, match="dtype: 'float16' is not known"):
        export_hf(folder, tmp_path / "other", "float16")


def test_bfloat16_rounds_like_torch() -> None:
    values = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    values = torch.cat([values, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, 1.00390625])])
    found = torch.from_numpy(to_bfloat16(values.numpy())).view(torch.bfloat16)
    torch.testing.assert_close(found, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "weight_map", [["a"], {"a": 1}, None, {"a": "../hf/model.safetensors"}, {"a": ".."}, {"a": ""}]
)
def test_an_index_that_names_no_files(tmp_path: Path, weight_map: Any) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"index\.json: (weight_map does not name a file|a shard lies outside)"):
        import_hf(tmp_path / "hf", tmp_path / "out")


@pytest.mark.parametrize("mask", ["random", "magnitude"])
@pytest.mark.parametrize(("key", "shape"), [("ln_f.bias", ()), ("h.0.attn.c_attn.bias", (4,))])
def test_tensors_of_another_shape(tmp_path: Path, key: str, shape: tuple[int, ...], mask: Any) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    save_file({**load_file(path), f"transformer.{key}": torch.zeros(shape)}, path)
    with pytest.raises(UserError, match=r"has shape .*, which does not fit config\.json"):
        import_hf(tmp_path / "hf", tmp_path / "out", 0.5, mask)
    assert not (tmp_path / "out").exists()


def test_wrong_folders(tmp_path: Path) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export_hf(folder, tmp_path / "hf")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        import_hf(tmp_path / "hf", folder)
    with pytest.raises(UserError, match="nowhere does not exist: name the folder of a downloaded model"):
        import_hf(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"model\.gguf is a file: name the folder"):
        import_hf(tmp_path / "model.gguf", tmp_path / "out")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        import_hf(folder, tmp_path / "out")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        import_hf(tmp_path / "hf", tmp_path / "out")


TEXT = "The Eagle is a coffee shop.\n  It serves  Indian food — £20-25, naïve 日本 🙂.\n\nname[The Eagle]"


def exported_sentencepiece(tmp_path: Path) -> tuple[Tokenizer, Any]:
    """Our tokenizer, and the one that Transformers loads from ``tmp_path/hf``."""
    from transformers import AutoTokenizer

    train_sentencepiece([Path(os.__file__).read_text()], 500, tmp_path / "t.model")
    folder = save_with_tokenizer(tmp_path / "ck", tmp_path / "t.model")
    export_hf(folder, tmp_path / "hf")
    return load_tokenizer(folder / "tokenizer"), AutoTokenizer.from_pretrained(tmp_path / "hf")


def test_sentencepiece_goes_along(tmp_path: Path) -> None:
    ours, theirs = exported_sentencepiece(tmp_path)
    source = Path(json.__file__).read_text()
    for text in (TEXT, source):
        ids = ours.encode(text)
        assert theirs.encode(text) == ids and theirs.decode(ids) == text
    assert theirs.eos_token_id == ours.eod_id
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == ours.eod_id
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert load_tokenizer(tmp_path / "back" / "tokenizer").digest == ours.digest


def test_broken_bytes_give_the_same_text(tmp_path: Path) -> None:
    """A model may stop inside a character, or generate invalid UTF-8."""
    ours, theirs = exported_sentencepiece(tmp_path)
    cut = ours.encode("one.\n\u2022")[:-2]
    assert ours.decode(cut) == theirs.decode(cut) == "one.\ufffd\ufffd"
    rng = random.Random(3)
    for _ in range(500):
        ids = ours.encode("".join(rng.choices("the \n\u2022日🙂▁", k=8)))
        for _ in range(rng.randrange(3)):
            del ids[rng.randrange(len(ids))]
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.skipif("SPDF_DATA" not in os.environ, reason="SPDF_DATA is not set: GPT-2's vocabulary lies there")
def test_gpt2_vocabulary_goes_along(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_with_tokenizer(tmp_path / "ck", Path(os.environ["SPDF_DATA"]) / "gpt2_vocab")
    export_hf(folder, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.encode("Hello world") == [15496, 995]
    ours = load_tokenizer(folder / "tokenizer")
    assert theirs.encode(TEXT) == ours.encode(TEXT) and theirs.decode(ours.encode(TEXT)) == TEXT
    assert theirs.eos_token_id == ours.eod_id == 50256
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert load_tokenizer(tmp_path / "back" / "tokenizer").digest == ours.digest


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    """A model folder, exported from a checkpoint with GPT-2's two files."""
    export_hf(save_with_tokenizer(tmp_path / "ck", write_gpt2_tokenizer(tmp_path / "t")), tmp_path / "hf")
    return tmp_path / "hf"


def with_tokenizer_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Replace a folder's tokenizer by transformers' version of it, with a change."""
    from transformers import GPT2Tokenizer

    GPT2Tokenizer.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    change(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")


def merges_as_text(tree: dict[str, Any]) -> None:
    """As tokenizers wrote them before version 0.20."""
    tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]


def end_beside_the_vocabulary(tree: dict[str, Any]) -> None:
    """Only the added tokens name it."""
    del tree["model"]["vocab"]["<|endoftext|>"]


@pytest.mark.parametrize("change", [lambda tree: None, merges_as_text, end_beside_the_vocabulary])
def test_a_tokenizer_json_gives_the_same_ids(
    tmp_path: Path, gpt2_folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    import_hf(gpt2_folder, tmp_path / "two_files")
    with_tokenizer_json(gpt2_folder, change)
    import_hf(gpt2_folder, tmp_path / "one_file")
    expected, found = (load_tokenizer(tmp_path / name / "tokenizer") for name in ("two_files", "one_file"))
    assert found.eod_id == expected.eod_id and found.vocab_size == expected.vocab_size
    for text in (TEXT, Path(json.__file__).read_text()):
        assert found.encode(text) == expected.encode(text) and found.decode(found.encode(text)) == text


def lower_case(tree: dict[str, Any]) -> None:
    """The pre-tokenizer and the normalizer are in this file only."""
    tree["normalizer"] = {"type": "Lowercase"}


def other_end(tree: dict[str, Any]) -> None:
    """A chat model, whose texts end with another token."""
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": 263, "content": "<|im_end|>"})


def own_word(tree: dict[str, Any]) -> None:
    token = {**tree["added_tokens"][0], "id": 263, "content": "zqx", "special": False}
    tree["added_tokens"].append(token)


@pytest.mark.parametrize("change", [lower_case, other_end, own_word])
def test_a_tokenizer_json_with_other_ids_is_preferred_to_two_files(
    tmp_path: Path, gpt2_folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    files = {name: (gpt2_folder / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    with_tokenizer_json(gpt2_folder, change)
    for name, content in files.items():
        (gpt2_folder / name).write_bytes(content)
    if change is other_end:
        (gpt2_folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    sizes = {"vocab_size": 264, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained(gpt2_folder)
    import_hf(gpt2_folder, tmp_path / "out")
    kept = Checkpoint(tmp_path / "out").tokenizer_dir
    assert kept is not None and (kept / "tokenizer.json").is_file() and not (kept / "encoder.json").exists()
    assert load_tokenizer(kept).eod_id == (263 if change is other_end else 262)
    for name in ("encoder.json", "vocab.bpe"):
        (kept / name).write_text("they would be taken first")
    with pytest.raises(UserError, match=r"encoder\.json does not belong to the checkpoint: remove it"):
        _ = Checkpoint(tmp_path / "out").tokenizer_dir


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"tokenizer_class": "Qwen2Tokenizer"}, "names Qwen2Tokenizer, which divides a text otherwise"),
        ({"add_prefix_space": True}, "has add_prefix_space"),
        ({"eos_token": {"content": "<|im_end|>"}}, "names the end token '<|im_end|>', not <|endoftext|>"),
    ],
)
def test_two_files_that_transformers_reads_otherwise_are_named(
    tmp_path: Path, gpt2_folder: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], reason: str
) -> None:
    (gpt2_folder / "tokenizer_config.json").write_text(json.dumps(config))
    import_hf(gpt2_folder, tmp_path / "out")
    assert f"no tokenizer is taken along: tokenizer_config.json {reason}" in capsys.readouterr().err
    assert Checkpoint(tmp_path / "out").tokenizer_dir is None


def test_a_sentencepiece_model_with_a_start_piece(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Llama 2's. Export names the class that reads it, and import says what differs."""
    import sentencepiece
    from transformers import AutoTokenizer

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(os.__file__).read_text().split("\n")),
        model_prefix=str(tmp_path / "t"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    export_hf(save_with_tokenizer(tmp_path / "ck", tmp_path / "t.model"), tmp_path / "hf")
    assert "no tokenizer.json" in capsys.readouterr().err
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = load_tokenizer(tmp_path / "t.model")
    assert theirs.eos_token_id == ours.eod_id == 2
    assert theirs.encode("The Eagle serves food.") == ours.encode("The Eagle serves food.")
    for config, named in (({}, True), ({"add_bos_token": False}, False)):
        (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(config))
        import_hf(tmp_path / "hf", tmp_path / f"out_{named}")
        assert ("texts will not begin with <s>" in capsys.readouterr().err) == named


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tree: tree["model"]["merges"].append(["t", "zz"]), "tokenizer.json is not a tokenizer.json"),
        (lambda tree: tree["model"]["vocab"].pop("a"), "tokenizer.json lacks 1 of the 256 bytes"),
        (lambda tree: tree["model"].pop("merges"), "tokenizer.json is not a tokenizer.json"),
    ],
)
def test_a_damaged_tokenizer_json_is_named(
    tmp_path: Path,
    gpt2_folder: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], object],
    reason: str,
) -> None:
    with_tokenizer_json(gpt2_folder, change)
    capsys.readouterr()
    import_hf(gpt2_folder, tmp_path / "out")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{gpt2_folder}: no tokenizer is taken along: {reason}")
    assert Checkpoint(tmp_path / "out").tokenizer_dir is None and not (tmp_path / "out" / "tokenizer").exists()


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = save(tmp_path / "run", 5)
    export_hf(folder, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "out")
    assert "no tokenizer is taken along: it has neither vocab.json" in capsys.readouterr().err


def test_two_files_that_do_not_load_are_named(
    tmp_path: Path, gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte-level BPE whose end-of-document token differs from ours."""
    path = gpt2_folder / "vocab.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "</s>"))
    import_hf(gpt2_folder, tmp_path / "out")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{gpt2_folder}: no tokenizer is taken along: vocab.json has no <|endoftext|> to end documents with"
    )
    assert Checkpoint(tmp_path / "out").tokenizer_dir is None


@pytest.mark.parametrize("form", ["tokenizer.model", "vocab.json", "tokenizer.json"])
def test_a_tokenizer_of_more_ids_than_the_model_is_named(
    tmp_path: Path, gpt2_folder: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    size = 263
    if form == "tokenizer.json":
        with_tokenizer_json(gpt2_folder, lambda tree: None)
    elif form == "tokenizer.model":
        size = 500
        train_sentencepiece([Path(os.__file__).read_text()], size, gpt2_folder / form)
        for name in ("vocab.json", "merges.txt"):
            (gpt2_folder / name).unlink()
    (small,) = save(tmp_path / "run", 5)
    export_hf(small, tmp_path / "small")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "small" / name).replace(gpt2_folder / name)
    capsys.readouterr()
    import_hf(gpt2_folder, tmp_path / "out")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{gpt2_folder}: no tokenizer is taken along: its tokenizer has {size} ids, the model 11"
    assert Checkpoint(tmp_path / "out").tokenizer_dir is None


def test_a_densified_checkpoint_exports_alike(tmp_path: Path) -> None:
    from spdf_dist.checkpoint.densify import densify

    (folder, _) = save(tmp_path / "run", 5, 2)
    densify(folder, tmp_path / "dense")
    export_hf(folder, tmp_path / "hf_sparse")
    export_hf(tmp_path / "dense", tmp_path / "hf_dense")
    sparse, dense = (load_file(tmp_path / name / "model.safetensors") for name in ("hf_sparse", "hf_dense"))
    assert sparse.keys() == dense.keys() and all(torch.equal(sparse[name], dense[name]) for name in sparse)
    c_attn = sparse["transformer.h.0.attn.c_attn.weight"]
    assert tuple(c_attn.shape) == (8, 24) and int((c_attn == 0).sum()) == 144


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from spdf_dist.cli.main import main

    save(tmp_path / "run" / "checkpoints", 5, 2)
    hf, back = str(tmp_path / "hf"), str(tmp_path / "back")
    assert main(["export-hf", str(tmp_path / "run"), hf]) == 0
    assert "GPT2LMHeadModel, 1,488 parameters" in capsys.readouterr().out
    assert main(["import-hf", hf, back, "--level", "0.5", "--mask", "magnitude"]) == 0
    assert "576 weights pruned (magnitude mask)" in capsys.readouterr().out
    assert main(["export-hf", str(tmp_path / "run"), hf]) == 2
    assert main(["import-hf", hf, str(tmp_path / "other"), "--level", "1.5"]) == 2
    assert "sparsity.level: must be in [0, 1), got 1.5" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "run"]
    assert main(["export-hf", back, str(tmp_path / "sparse")]) == 0
    assert main(["import-hf", str(tmp_path / "sparse"), str(tmp_path / "zeros"), "--mask", "zeros"]) == 0
    again, first = Checkpoint(tmp_path / "zeros"), Checkpoint(tmp_path / "run")
    assert again.sparsity is not None and again.sparsity.level == 0.75
    assert {n: m.sha256 for n, m in again.manifest.masks.items()} == {
        n: m.sha256 for n, m in first.manifest.masks.items()
    }
    (dense,) = save(tmp_path / "dense", 5, sparsity=None)
    assert main(["export-hf", str(dense), str(tmp_path / "hf_dense")]) == 0
    assert main(["import-hf", str(tmp_path / "hf_dense"), str(tmp_path / "none"), "--mask", "zeros"]) == 2
    assert "--mask zeros: no weight" in capsys.readouterr().err


def test_the_model_card_says_what_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import math

    import yaml

    from spdf_dist.cli.main import main

    (folder,) = save(tmp_path / "run", 5, sparsity=SPARSE)
    assert main(["export-hf", str(folder), str(tmp_path / "hf"), "--license", "apache-2.0"]) == 0
    capsys.readouterr()
    card = (tmp_path / "hf" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0" and "sparsity" in head["tags"]
    manifest = Checkpoint(folder).manifest
    kept = sum(mask.kept for mask in manifest.masks.values())
    entries = sum(math.prod(mask.shape) for mask in manifest.masks.values())
    assert f"| Sparsity | {1 - kept / entries:.4%} of {entries:,} weights in {len(manifest.masks)} matrices" in card
    assert manifest.sha256 in card and f"| Tokens | {manifest.consumed_tokens:,} |" in card
