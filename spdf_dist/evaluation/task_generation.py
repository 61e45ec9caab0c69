"""Generates one line of text for each distinct input of a task, in file order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks import Example, Task, distinct_contexts
from spdf_dist.evaluation.checkpoint import Loaded
from spdf_dist.evaluation.generation import GenerationSettings, generate


@dataclass(frozen=True)
class Hypotheses:
    """Generated texts and counts of truncations."""

    texts: list[str]
    cut_prompts: int
    """Number of inputs whose context was too long for the model and lost its end."""
    unfinished: int
    """Number of texts that reached the limit of tokens."""


def room(window: int, max_new_tokens: int) -> int:
    """Minimum number of tokens of the context window that a prompt leaves for generation."""
    return min(max_new_tokens, window // 4)


def generate_task(
    loaded: Loaded,
    task: Task,
    examples: Sequence[Example],
    settings: GenerationSettings,
    batch_size: int,
    progress: Callable[[int], object],
) -> Hypotheses:
    """Generate a text for each distinct context of ``examples``. It ends at an empty line and is finished by the task.

    Raises:
        UserError: the context window is too short for any prompt.
    """
    window = loaded.decoder.model.seq_length
    longest = window - room(window, settings.max_new_tokens)
    if longest < 2:
        raise UserError(f"the model's context window of {window} tokens is too short to generate text")
    prompts = [task.encode_prompt(context, loaded.tokenizer) for context in distinct_contexts(examples)]
    cut = sum(len(prompt) > longest for prompt in prompts)
    prompts = [p if len(p) <= longest else [*p[: longest - 1], p[-1]] for p in prompts]
    outputs = generate(loaded.decoder, prompts, loaded.end_ids, settings, batch_size, progress)
    unfinished = sum(
        len(ids) >= min(settings.max_new_tokens, window - len(prompt))
        for ids, prompt in zip(outputs, prompts, strict=True)
    )
    texts = [task.finish(loaded.tokenizer.decode(ids).split("\n\n")[0].strip()) for ids in outputs]
    return Hypotheses([" ".join(text.splitlines()) for text in texts], cut, unfinished)
