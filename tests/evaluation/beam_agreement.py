"""Our beam search against transformers' over a task file, on a trained model; run by hand, results in docs/trial.md.

    spdf export-hf RUN EXPORTED
    python tests/evaluation/beam_agreement.py RUN EXPORTED E2E_CSV

Both get the same token ids of the same prompts, one prompt at a time in transformers, which needs no padding then.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.data.tasks import distinct_contexts, load_task
from spdf_dist.data.tasks.encoding import encode_prompt
from spdf_dist.evaluation.checkpoint import load
from spdf_dist.evaluation.generation import GenerationSettings, generate


def main() -> None:
    """Print the times, and every input whose outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("input", type=Path)
    parser.add_argument("--limit", type=int, help="the first inputs alone")
    args = parser.parse_args()

    ours = load(Checkpoint(args.checkpoint), None, "cpu")
    theirs = GPT2LMHeadModel.from_pretrained(args.exported).eval()
    contexts = distinct_contexts(load_task("e2e", args.input, "test"))[: args.limit]
    prompts = [encode_prompt(context, ours.tokenizer) for context in contexts]
    settings = GenerationSettings(max_new_tokens=64, beams=10, length_penalty=0.8, no_repeat_ngram=4)

    began = time.perf_counter()
    outputs = generate(ours.decoder, prompts, ours.end_ids, settings, 32)
    print(f"ours: {len(prompts)} inputs in {time.perf_counter() - began:.1f} s")

    equal, began = 0, time.perf_counter()
    for prompt, output in zip(tqdm(prompts, desc="transformers"), outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=10,
            length_penalty=0.8,
            no_repeat_ngram_size=4,
            max_new_tokens=64,
            eos_token_id=list(ours.end_ids),
            pad_token_id=ours.end_ids[0],
        )[0, len(prompt) :].tolist()
        expected = expected[: next((at for at, token in enumerate(expected) if token in ours.end_ids), None)]
        equal += expected == output
        if expected != output:
            print(f"ours   {ours.tokenizer.decode(output)!r}\ntheirs {ours.tokenizer.decode(expected)!r}")
    print(f"transformers: {time.perf_counter() - began:.1f} s; equal: {equal} of {len(prompts)}")


if __name__ == "__main__":
    main()
