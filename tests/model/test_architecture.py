"""The table of tensors agrees with the training model."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from spdf_dist.accounting.layout import Layout, local_elements
from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.base.rank_variables import SINGLE_PROCESS
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, RopeScaling, SparsityConfig
from spdf_dist.config.validate import validate_model
from spdf_dist.model.architecture import Architecture, architecture_of
from spdf_dist.model.gpt import build_gpt
from spdf_dist.parallel.groups import Groups, initialize
from spdf_dist.parallel.layout import shards_of
from spdf_dist.sparsity.masks import RandomMasks

SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 16, "vocab_size": 61}
LLAMA = ModelConfig(**SIZES, family="llama", num_key_value_heads=2)
MODELS = {"gpt2": ModelConfig(**SIZES), "llama": LLAMA, "llama_untied": replace(LLAMA, tie_embeddings=False)}


@pytest.fixture(params=MODELS)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return architecture_of(MODELS[request.param])


@pytest.fixture(scope="module")
def groups() -> Groups:
    return initialize(SINGLE_PROCESS, 1, None, "cpu")


@pytest.mark.parametrize("execution", ["masked", "compressed"])
def test_the_training_model_has_the_tensors_of_the_table(
    architecture: Architecture, groups: Groups, execution: str
) -> None:
    model, sparsity = architecture.model, SparsityConfig(level=0.75, targets=list(architecture.targets))
    gpt = build_gpt(
        model,
        groups,
        masks=RandomMasks(model, sparsity),
        execution=dict.fromkeys(architecture.linears, execution),
        dtype=torch.float32,
    )
    by_path = {path: [tensor.name for tensor in tensors] for path, tensors in architecture.by_parameter().items()}
    found = {path: [shard.name for shard in shards_of(parameter)] for path, parameter in gpt.named_parameters()}
    assert found == by_path
    for parameter in gpt.parameters():
        for shard in shards_of(parameter):
            tensor = architecture.tensors[shard.name]
            assert (shard.shape, shard.dim) == (tensor.shape, tensor.shard_dim)
            assert shard.sparse == tensor.prunable
    layout = Layout(1, 1, 1, 1, execution, "fp32", False)
    assert sum(p.numel() for p in gpt.parameters()) == local_elements(model, sparsity, layout).parameters


def test_roles_decide_decay_and_initial_values(architecture: Architecture) -> None:
    deep = math.sqrt(2 * architecture.model.num_layers)
    for name, tensor in architecture.tensors.items():
        leaf = name.rsplit(".", 1)[1]
        assert tensor.decays == (len(tensor.shape) == 2)
        if tensor.role == "norm":
            assert (tensor.initial_mean, tensor.initial_std) == (float(leaf == "weight"), 0)
        elif tensor.role == "bias":
            assert (tensor.initial_mean, tensor.initial_std) == (0, 0)
        else:
            assert tensor.initial_std == pytest.approx(0.02 / deep if leaf in ("W_D", "W_O") else 0.02)
        assert (tensor.role == "residual_output") == (leaf in ("W_D", "W_O"))
    assert total_parameters(architecture.model) == sum(tensor.numel for tensor in architecture.tensors.values())


def test_keys_that_a_family_lacks_are_named() -> None:
    for keys, message in (
        ({"family": "gpt3"}, "model.family: 'gpt3' is not known"),
        ({"rope_theta": 1e4}, "model.rope_theta: model.family gpt2 has no such choice"),
        ({"family": "llama", "rope_theta": -1.0}, "model.rope_theta: must be positive and finite, got -1.0"),
        ({"family": "llama", "hidden_size": 12}, "rotary positions need heads of even size, not 3"),
        (
            {"family": "llama", "rope_scaling": RopeScaling(low_freq_factor=4.0, high_freq_factor=2.0)},
            "high_freq_factor: must be more than low_freq_factor 4.0, got 2.0",
        ),
        ({"num_key_value_heads": 3}, "model.num_key_value_heads: 3 does not divide model.num_attention_heads 4"),
        ({"norm_eps": 0.0}, "model.norm_eps: must be between 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            validate_model(ModelConfig(**{**SIZES, **keys}))


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys; from spdf_dist.config.schema import ModelConfig; "
        "from spdf_dist.model.architecture import FAMILIES, architecture_of; "
        "[architecture_of(ModelConfig(family=family)) for family in FAMILIES]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
