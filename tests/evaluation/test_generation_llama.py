"""The decoder and its searches, compared with transformers' Llama on the same random weights."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_gpt import random_weights

from spdf_dist.config.schema import ModelConfig, RopeScaling
from spdf_dist.evaluation.decoder import Decoder
from spdf_dist.evaluation.generation import GenerationSettings, generate
from spdf_dist.model.architecture import architecture_of
from spdf_dist.model.llama.hf import hf_config

MODEL = ModelConfig(
    family="llama",
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    seq_length=64,
    vocab_size=61,
    rope_theta=200.0,
    rope_scaling=RopeScaling(4.0, 1.0, 3.0, 16),
    tie_embeddings=False,
)
ENDS = (0, 7)


@pytest.fixture(scope="module")
def models() -> tuple[Decoder, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    weights = random_weights(MODEL, seed=3)
    network = LlamaForCausalLM(LlamaConfig(**hf_config(MODEL))).eval()
    table = architecture_of(MODEL).tensors
    network.load_state_dict({table[name].hf_name: tensor for name, tensor in weights.items()})
    return Decoder(MODEL, weights), network


@pytest.mark.parametrize(("beams", "penalty", "ngram"), [(1, 1.0, 0), (4, 0.8, 4), (5, 1.2, 0)])
def test_searches_equal_transformers(models: tuple[Decoder, Any], beams: int, penalty: float, ngram: int) -> None:
    decoder, network = models
    rng = random.Random(5)
    prompts = [[rng.randrange(1, 7) for _ in range(rng.randrange(1, 20))] for _ in range(12)]
    settings = GenerationSettings(max_new_tokens=16, beams=beams, length_penalty=penalty, no_repeat_ngram=ngram)
    options = {"num_beams": beams, "max_new_tokens": 16, "no_repeat_ngram_size": ngram}
    if beams > 1:
        options |= {"length_penalty": penalty, "early_stopping": False}
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            eos_token_id=list(ENDS),
            pad_token_id=0,
            do_sample=False,
            **options,
        )
        new = output[0, len(prompt) :].tolist()
        expected.append(new[: next((at for at, token in enumerate(new) if token in ENDS), len(new))])
    assert len({tuple(text) for text in expected}) > 3
    assert generate(decoder, prompts, ENDS, settings, batch_size=5) == expected
