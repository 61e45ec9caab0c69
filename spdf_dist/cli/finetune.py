"""Fine-tune a pre-trained checkpoint on a data-to-text or summarization task.

A sparse checkpoint becomes dense on load: the pruned weights start at zero and are trained. With
finetune.keep_mask=true they stay pruned, as a control. CONFIG is a YAML file or the name of a shipped config;
key.sub=value overrides it. Ranks start as for `spdf pretrain`. The same command continues a run folder.

  spdf finetune finetune/e2e finetune.checkpoint=runs/s75 finetune.train=e2e/trainset.csv \\
      finetune.validation=e2e/devset.csv --dry-run"""

from __future__ import annotations

import argparse

from spdf_dist.cli import dry_run
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import FinetuneConfig
from spdf_dist.config.validate import require_inputs, validate_sequence_parallel, validate_tensor_parallel

HELP = "fine-tune a checkpoint, dense, on a task"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="sets a config key; may be repeated")
    parser.add_argument("--change", action="store_true", help="continue the run although its config differs")
    dry_run.configure(parser)


def run(args: argparse.Namespace) -> int:
    dry_run.check(args)
    config = load_config(FinetuneConfig, args.config, args.overrides)
    require_inputs(config)
    if args.dry_run:
        from spdf_dist.cli.start import world_size
        from spdf_dist.training.finetune import foresee

        opening, about_data = foresee(config, world_size(config))
        dry_run.show(args, config, opening.summary, lambda: opening.foreseen(about_data))
        return 0
    from spdf_dist.base.rank_variables import Ranks
    from spdf_dist.checkpoint.read import Checkpoint
    from spdf_dist.cli.memory import uncollected
    from spdf_dist.cli.start import start

    # Before ranks start: whether there is a checkpoint, and whether they can divide its model.
    model = Checkpoint(config.finetune.checkpoint).model
    validate_tensor_parallel(model, config.parallel.tensor)
    validate_sequence_parallel(model, config.parallel)

    def work(ranks: Ranks) -> None:
        with uncollected():
            from spdf_dist.training.finetune import finetune
            from spdf_dist.training.run import AllowedChanges

        finetune(config, ranks, AllowedChanges(args.change))

    flags = ["--change"] * args.change
    return start("finetune", [args.config, *args.overrides, *flags], config, work, change=args.change)
