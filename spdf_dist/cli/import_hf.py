"""Import a dense Hugging Face model as a checkpoint, unchanged or pruned.

DIR holds config.json and model.safetensors. OUT becomes a checkpoint folder that `spdf finetune`, `spdf generate` and
the other commands take. --level prunes the matrices of each layer: --mask random uses the random mask of pre-training,
and --mask magnitude keeps the largest magnitudes. --mask zeros keeps the sparsity that the model has. `spdf pretrain`
continues from OUT with training.init_from=OUT sparsity.pattern=init_from."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "import a Hugging Face model as a checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder of the model")
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint folder that is written")
    parser.add_argument("--level", type=float, default=0.0, help="pruned fraction of each matrix (default: 0, dense)")
    parser.add_argument(
        "--mask",
        choices=("random", "magnitude", "zeros"),
        default="random",
        help="choice of the pruned weights; zeros: those that are zero in the model (default: random)",
    )
    parser.add_argument(
        "--seq-length", type=int, metavar="T", help="context window of the checkpoint in tokens (default: the model's)"
    )
    parser.add_argument("--seed", type=int, default=1234, help="sparsity.seed of the random mask (default: 1234)")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.checkpoint.hf_import import import_hf

    pruned = import_hf(args.dir, args.out, args.level, args.mask, args.seed, args.seq_length)
    print(f"{args.out}: imported, {f'{pruned:,} weights pruned ({args.mask} mask)' if pruned else 'dense'}")
    return 0
