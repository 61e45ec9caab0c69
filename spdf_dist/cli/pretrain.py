"""Pre-train a GPT, sparse or dense.

CONFIG is a YAML file or the name of a shipped config (`spdf config` lists them); key.sub=value overrides it. Without a
launcher, the command spawns parallel.tensor x parallel.data ranks. Under torchrun, deepspeed, mpirun or srun, each
process is one rank. The same command continues a run folder from its last checkpoint.

  spdf pretrain gpt2_small --dry-run
  spdf pretrain cpu_4m data.train=data/packed sparsity.level=0.75 run_dir=runs/s75"""

from __future__ import annotations

import argparse

from spdf_dist.cli import dry_run
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig

HELP = "pre-train a GPT with a static random mask, or dense"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="sets a config key; may be repeated")
    parser.add_argument("--change", action="store_true", help="continue the run although its config differs")
    parser.add_argument(
        "--rewind",
        nargs="?",
        type=int,
        const=-1,
        metavar="STEP",
        help="return to the newest checkpoint (or that of STEP) and skip the batches since then",
    )
    dry_run.configure(parser)


def run(args: argparse.Namespace) -> int:
    dry_run.check(args)
    config = load_config(PretrainConfig, args.config, args.overrides)
    if args.dry_run:
        from spdf_dist.accounting.plan import plan
        from spdf_dist.cli.start import world_size

        ranks = world_size(config)

        def on_this_machine() -> list[str]:
            from spdf_dist.training.opening import foresee  # imports torch, which takes seconds

            return foresee(config, ranks)

        dry_run.show(args, config, plan(config, ranks), on_this_machine)
        return 0
    from spdf_dist.base.rank_variables import Ranks
    from spdf_dist.cli.memory import uncollected
    from spdf_dist.cli.start import start

    def work(ranks: Ranks) -> None:
        with uncollected():
            from spdf_dist.training.pretrain import pretrain
            from spdf_dist.training.run import AllowedChanges

        pretrain(config, ranks, AllowedChanges(args.change, args.rewind))

    flags = ["--change"] * args.change + ([] if args.rewind is None else [f"--rewind={args.rewind}"])
    arguments = [args.config, *args.overrides, *flags]
    return start("pretrain", arguments, config, work, change=args.change, goes_back=args.rewind is not None)
