"""Write a checkpoint as a Hugging Face model folder.

The folder has model.safetensors (or shards of it), config.json, the tokenizer, and README.md, a model card with
sparsity, tokens, FLOPs and data.

CHECKPOINT is a step_N folder, a run folder (its newest complete checkpoint is taken) or its checkpoints folder. Pruned
weights are written as zeros. OUT must not exist, or must be empty."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

HELP = "write a checkpoint as a Hugging Face model"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a step_N folder, a run folder or its checkpoints")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder that is written")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights (default: float32)"
    )
    parser.add_argument("--license", metavar="ID", help="the licence in the model card, such as apache-2.0")
    parser.add_argument(
        "--max-shard-gb",
        type=float,
        default=5.0,
        metavar="GB",
        help="largest size of a file of weights, in GB (default: 5)",
    )


def run(args: argparse.Namespace) -> int:
    from spdf_dist.checkpoint.hf_export import export_hf
    from spdf_dist.config.errors import UserError

    if not 0 < args.max_shard_gb < math.inf:
        raise UserError(f"--max-shard-gb: must be positive and finite, got {args.max_shard_gb}")

    name, count = export_hf(args.checkpoint, args.out, args.dtype, int(args.max_shard_gb * 1e9), args.license)
    print(f"{args.out}: {name}, {count:,} parameters")
    return 0
