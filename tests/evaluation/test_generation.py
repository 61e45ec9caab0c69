"""The decoder and its searches, compared with transformers' GPT-2 on the same random weights."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_gpt import make_decoder, random_weights, transformers_model

from spdf_dist.config.schema import ModelConfig
from spdf_dist.evaluation.decoder import Decoder
from spdf_dist.evaluation.generation import GenerationSettings, generate, uniform

MODEL = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=64, vocab_size=61)
ENDS = (0, 7)


@pytest.fixture(scope="module")
def models() -> tuple[Decoder, Any]:
    weights = random_weights(MODEL, seed=3)
    return make_decoder(MODEL, weights), transformers_model(MODEL, weights)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    # Few different tokens, so that n-grams repeat.
    return [[rng.randrange(1, 7) for _ in range(rng.randrange(1, 20))] for _ in range(25)]


def theirs(network: Any, prompt: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    output = network.generate(
        ids, attention_mask=torch.ones_like(ids), eos_token_id=list(ENDS), pad_token_id=0, do_sample=False, **options
    )
    new = output[0, len(prompt) :].tolist()
    return new[: next((at for at, token in enumerate(new) if token in ENDS), len(new))]


def test_logits_equal_transformers(models: tuple[Decoder, Any]) -> None:
    decoder, network = models
    tokens = torch.randint(0, MODEL.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(tokens).logits
    torch.testing.assert_close(decoder.logits(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ngram", [0, 1, 3])
def test_greedy_equals_transformers(models: tuple[Decoder, Any], prompts: list[list[int]], ngram: int) -> None:
    decoder, network = models
    settings = GenerationSettings(max_new_tokens=16, beams=1, no_repeat_ngram=ngram)
    ours = generate(decoder, prompts, ENDS, settings, batch_size=7)
    assert ours == [theirs(network, p, num_beams=1, max_new_tokens=16, no_repeat_ngram_size=ngram) for p in prompts]


@pytest.mark.parametrize(
    ("beams", "penalty", "ngram", "ends"),
    [(4, 0.8, 4, ENDS), (10, 0.8, 2, ENDS), (3, 0.0, 0, ENDS), (5, 1.2, 0, ENDS), (2, -1.0, 3, ENDS)],
)
def test_beam_search_equals_transformers(
    models: tuple[Decoder, Any], prompts: list[list[int]], beams: int, penalty: float, ngram: int, ends: tuple[int, ...]
) -> None:
    decoder, network = models
    settings = GenerationSettings(max_new_tokens=20, beams=beams, length_penalty=penalty, no_repeat_ngram=ngram)
    ours = generate(decoder, prompts, ends, settings, batch_size=16)
    options = {"num_beams": beams, "length_penalty": penalty, "no_repeat_ngram_size": ngram, "max_new_tokens": 20}
    expected = [theirs(network, prompt, **options) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 1  # some end early, some run on
    assert sum(a == b for a, b in zip(ours, expected, strict=True)) >= 0.99 * len(prompts)


def test_result_does_not_depend_on_the_batch(models: tuple[Decoder, Any], prompts: list[list[int]]) -> None:
    decoder, _ = models
    for settings in (
        GenerationSettings(max_new_tokens=12, beams=4),
        GenerationSettings(max_new_tokens=12, beams=1, sample=True, temperature=0.8, top_k=20, top_p=0.9, seed=4),
    ):
        alone = generate(decoder, prompts, ENDS, settings, batch_size=1)
        assert generate(decoder, prompts, ENDS, settings, batch_size=64) == alone


def test_ngrams_of_the_prompt_may_be_repeated_when_asked(models: tuple[Decoder, Any]) -> None:
    decoder, _ = models
    prompt = [1, 2, 3, 4]
    free = generate(decoder, [prompt], (), GenerationSettings(max_new_tokens=1, beams=1, no_repeat_ngram=0))[0][0]
    with_copy = [free, *prompt]
    # The greedy token after this prompt occurs in it. As a 1-gram it is banned, unless the prompt does not count.
    token = generate(decoder, [with_copy], (), GenerationSettings(max_new_tokens=1, beams=1, no_repeat_ngram=0))[0][0]
    prompt = [token, *with_copy]
    greedy = generate(decoder, [prompt], (), GenerationSettings(max_new_tokens=1, beams=1, no_repeat_ngram=0))[0]
    for counts in (True, False):
        settings = GenerationSettings(max_new_tokens=1, beams=1, no_repeat_ngram=1, ngrams_of_prompt=counts)
        result = generate(decoder, [prompt], (), settings)[0]
        if counts:
            assert result[0] not in prompt
        else:
            assert result == greedy


def test_sampling_follows_the_distribution(models: tuple[Decoder, Any]) -> None:
    decoder, _ = models
    prompts = [[1, 2, 3]] * 4000
    settings = GenerationSettings(max_new_tokens=1, beams=1, sample=True, no_repeat_ngram=0, top_k=5, temperature=3.0)
    drawn = torch.tensor([ids[0] for ids in generate(decoder, prompts, (), settings, batch_size=500)])
    logits = decoder.logits(torch.tensor([[1, 2, 3]]))[0, -1]
    values, tokens = (logits / 3.0).topk(5)
    share = torch.stack([(drawn == token).double().mean() for token in tokens])
    torch.testing.assert_close(share, values.softmax(-1).double(), rtol=0, atol=0.04)


def test_top_p_keeps_the_token_that_crosses(models: tuple[Decoder, Any]) -> None:
    decoder, _ = models
    probabilities, tokens = decoder.logits(torch.tensor([[4, 4]]))[0, -1].softmax(-1).sort(descending=True)
    settings = GenerationSettings(
        max_new_tokens=1, beams=1, sample=True, no_repeat_ngram=0, top_p=float(probabilities[:2].sum()) + 1e-4
    )
    drawn = {ids[0] for ids in generate(decoder, [[4, 4]] * 3000, (), settings, batch_size=1000)}
    assert drawn <= set(tokens[:3].tolist()) and {int(tokens[0]), int(tokens[1])} <= drawn


def test_numbers_are_drawn_for_the_context_window_alone(models: tuple[Decoder, Any]) -> None:
    decoder, _ = models
    prompts = [[1, 2, 3], [5] * 60]
    found = []
    for most in (MODEL.seq_length, 10**15):  # more numbers than fit in memory
        settings = GenerationSettings(max_new_tokens=most, beams=1, sample=True, no_repeat_ngram=0, seed=2)
        found.append(generate(decoder, prompts, (), settings))
    assert found[0] == found[1]
    assert [len(ids) for ids in found[0]] == [61, 4]


def test_numbers_of_a_seed_stay_what_they_are() -> None:
    expected = [
        [0.4879286329632675, 0.26075514747283524, 0.5850415022857571],
        [0.1681509853831853, 0.8005929909695705, 0.21972134854639147],
    ]
    assert uniform(4, [0, 9], 3).tolist() == expected
    assert uniform(4, [0, 9], 64)[:, :3].tolist() == expected


def test_generation_ends_with_the_context_window(models: tuple[Decoder, Any]) -> None:
    decoder, network = models
    prompts = [[1, 2, 3], [5] * 60, [3] * 63]
    for beams in (1, 3):
        settings = GenerationSettings(max_new_tokens=10, beams=beams, no_repeat_ngram=0, length_penalty=1.0)
        ours = generate(decoder, prompts, ENDS, settings)
        room = [10, 4, 1]
        assert ours == [
            theirs(network, prompt, num_beams=beams, length_penalty=1.0, max_new_tokens=most)
            for prompt, most in zip(prompts, room, strict=True)
        ]


@pytest.mark.parametrize("prompt", [[], [1] * 64])
def test_prompt_that_does_not_fit_is_refused(models: tuple[Decoder, Any], prompt: list[int]) -> None:
    decoder, _ = models
    with pytest.raises(ValueError, match=f"prompt 1 has {len(prompt)} tokens"):
        generate(decoder, [[1], prompt], ENDS, GenerationSettings(max_new_tokens=10))


def test_words_that_the_tokenizer_lacks_are_never_generated() -> None:
    weights = random_weights(MODEL, seed=3)
    weights["embedding.word"][50:] *= 100  # by far the most likely token
    for beams in (1, 3):
        settings = GenerationSettings(max_new_tokens=8, beams=beams)
        limited = Decoder(MODEL, weights, words=50)
        assert max(max(out) for out in generate(limited, [[1, 2], [3]], (49,), settings)) < 50
        assert max(max(out) for out in generate(make_decoder(MODEL, weights), [[1, 2], [3]], (49,), settings)) >= 50
