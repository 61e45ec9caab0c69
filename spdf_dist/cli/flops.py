"""FLOPs of a config: per sequence, of the whole run, by part, and the saving through sparsity.

  spdf flops gpt3_xl_s75                                  a pre-training config
  spdf flops finetune/gpt2_small_e2e --model gpt2_small --examples 42061
                                                          a fine-tuning config
  spdf flops --paper                                      Tables 2 and 3 of the paper, as printed and as computed here

The formula counts the multiplications and additions of kept weights, attention, softmax and logits. The backward pass
takes twice the FLOPs of the forward pass. Embeddings are look-ups and take none. The formula reproduces the paper's
tables (docs/flops.md)."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spdf_dist.accounting.flops import TRAINING_FACTOR, forward_flops, linears_share, training_flops
from spdf_dist.accounting.paper import FIGURE_2_REMARK, TABLE_3_REMARKS, Row, figure_2, table_2, table_3
from spdf_dist.accounting.parameters import real_sparsity, total_parameters
from spdf_dist.accounting.phases import phases, run_flops
from spdf_dist.accounting.text_table import text_table
from spdf_dist.config.budget import total_steps, warmup_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import config_from_tree, kind_of, load_config, load_tree, read_tree
from spdf_dist.config.schema import FinetuneConfig, PretrainConfig
from spdf_dist.sparsity.assignment import remarks
from spdf_dist.sparsity.masks import logical_weights

HELP = "FLOPs of a config, and the paper's tables beside ours"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="a YAML file or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="sets a config key; may be repeated")
    parser.add_argument(
        "--paper", action="store_true", help="print Tables 2 and 3 and the blog's Figure 2 beside our numbers"
    )
    parser.add_argument(
        "--model", help="fine-tuning: pre-training config of the model (default: that of the checkpoint)"
    )
    parser.add_argument(
        "--examples", type=int, help="fine-tuning: number of training examples (default: FLOPs per example)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def pretraining(config: PretrainConfig) -> dict[str, Any]:
    """The numbers of a pre-training config; FLOPs are of training (forward and backward) unless named forward."""
    model, sparsity = config.model, config.sparsity
    sequences = config.training.train_tokens / model.seq_length
    per_sequence, dense = training_flops(model, sparsity), training_flops(model)
    steps, batch = total_steps(config), config.training.global_batch_size
    # What phases at other levels and updates of the masks make of the run; 1 for static masks.
    run = run_flops(config) / (steps * batch * per_sequence) if steps else 1.0
    return {
        "model": asdict(model),
        "sparsity": real_sparsity(model, sparsity),
        "sparsity_asked": sparsity.level,
        "remarks": remarks(logical_weights(model), sparsity),
        "pattern": sparsity.pattern,
        "parameters": total_parameters(model),
        "nonzeros": total_parameters(model, sparsity),
        "train_tokens": config.training.train_tokens,
        "sequences": sequences,
        "steps": total_steps(config),
        "warmup_steps": warmup_steps(config),
        "flops_per_sequence": per_sequence,
        "forward_flops_per_sequence": per_sequence // TRAINING_FACTOR,
        "flops_per_token": per_sequence / model.seq_length,
        "total_flops": per_sequence * sequences * run,
        "exaflops": per_sequence * sequences * run / 1e18,
        "phases": [{"steps": count, "sparsity": real_sparsity(model, phase)} for count, phase in phases(config)],
        "dense_flops_per_sequence": dense,
        "dense_total_flops": dense * sequences,
        "reduction": per_sequence * run / dense,
        "fewer_flops": dense / (per_sequence * run),
        "linears_share": linears_share(model),
        "breakdown": {part: TRAINING_FACTOR * flops for part, flops in forward_flops(model, sparsity).items()},
        "dense_breakdown": {part: TRAINING_FACTOR * flops for part, flops in forward_flops(model).items()},
    }


def finetuning_model(config: FinetuneConfig, model: str | None) -> PretrainConfig:
    """The pre-training config whose model is fine-tuned. Raises UserError when it cannot be known."""
    if model is not None:
        return load_config(PretrainConfig, model)
    checkpoint = Path(config.finetune.checkpoint)
    for path in (checkpoint / "config.yaml", checkpoint.parent.parent / "config.yaml"):
        if path.is_file():
            tree = read_tree(path)
            if "finetune" in tree:
                raise UserError(
                    f"finetune.checkpoint: {path} is a fine-tuned checkpoint: name the model with --model CONFIG"
                )
            return config_from_tree(PretrainConfig, tree)
    raise UserError(f"finetune.checkpoint: no config.yaml at '{checkpoint}': name the model with --model CONFIG")


def finetuning(config: FinetuneConfig, model: str | None, examples: int | None) -> dict[str, Any]:
    """The numbers of a fine-tuning config, every example counted at the cap on its length."""
    pretrain = finetuning_model(config, model)
    length = min(config.finetune.max_length, pretrain.model.seq_length)
    sparsity = pretrain.sparsity if config.finetune.keep_mask else None
    per_sequence = training_flops(pretrain.model, sparsity, length)
    out: dict[str, Any] = {
        "task": config.finetune.task,
        "model": asdict(pretrain.model),
        "parameters": total_parameters(pretrain.model),
        "sparsity": real_sparsity(pretrain.model, sparsity) if sparsity else 0.0,
        "seq_length": length,
        "flops_per_sequence": per_sequence,
        "forward_flops_per_sequence": per_sequence // TRAINING_FACTOR,
        "breakdown": {
            part: TRAINING_FACTOR * flops for part, flops in forward_flops(pretrain.model, sparsity, length).items()
        },
    }
    if examples is not None:
        out["sequences"] = examples * config.finetune.epochs
        if config.finetune.max_steps is not None:
            most = config.finetune.max_steps * config.training.global_batch_size
            out["sequences"] = min(out["sequences"], most)
        out["total_flops"] = per_sequence * out["sequences"]
        out["exaflops"] = out["total_flops"] / 1e18
    return out


def level_changes(phases: list[dict[str, Any]]) -> str:
    """The steps and levels of a run whose level changes, in a line."""
    shown = [f"{phase['steps']:,} steps at {phase['sparsity']:.3g}" for phase in phases]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]])


def show_pretraining(numbers: dict[str, Any]) -> str:
    """The text form of ``pretraining``."""
    model = numbers["model"]
    sparse = numbers["sparsity"] > 0
    title = (
        f"{model['num_layers']} layers x {model['hidden_size']}, {model['seq_length']} tokens, V {model['vocab_size']}"
    )
    lines = [
        f"model                 {title}",
        f"parameters            {numbers['parameters']:,}"
        + (
            f", {numbers['nonzeros']:,} kept at {numbers['sparsity']:.4g} {numbers['pattern']}"
            if sparse
            else " (dense)"
        ),
        *(f"REMARK                {remark}" for remark in numbers["remarks"]),
        f"budget                {numbers['train_tokens']:,} tokens = {numbers['sequences']:.4g} sequences, "
        f"{numbers['steps']:,} steps ({numbers['warmup_steps']:,} warm-up)",
        f"FLOPs per sequence    {numbers['flops_per_sequence']:.5g} "
        f"({numbers['forward_flops_per_sequence']:.5g} forward)",
        *([f"levels                {level_changes(numbers['phases'])}"] if len(numbers["phases"]) > 1 else []),
        f"FLOPs in total        {numbers['total_flops']:.4g} = {numbers['exaflops']:.4g} exaFLOPs",
        f"against dense         {numbers['reduction']:.3f}x, {numbers['fewer_flops']:.2f} times fewer"
        f" (dense {numbers['dense_total_flops']:.4g})",
        f"linears' share        {numbers['linears_share']:.1%} of the dense model's FLOPs can be sparse",
        "",
        text_table(
            ("part", "FLOPs per sequence", "share", "dense"),
            [
                (
                    f"W_{part}" if len(part) == 1 else part,
                    f"{numbers['breakdown'][part]:.4e}",
                    f"{numbers['breakdown'][part] / numbers['flops_per_sequence']:.1%}",
                    f"{numbers['dense_breakdown'][part]:.4e}",
                )
                for part in numbers["breakdown"]
            ],
        ),
    ]
    return "\n".join(lines)


def show_finetuning(numbers: dict[str, Any]) -> str:
    """The text form of ``finetuning``."""
    lines = [
        f"fine-tuning           {numbers['task']}, examples padded to {numbers['seq_length']} tokens",
        f"parameters            {numbers['parameters']:,}",
        f"FLOPs per example     {numbers['flops_per_sequence']:.5g} "
        f"({numbers['forward_flops_per_sequence']:.5g} forward)",
    ]
    if "total_flops" in numbers:
        lines.append(
            f"FLOPs in total        {numbers['total_flops']:.4g} = {numbers['exaflops']:.4g} exaFLOPs, "
            f"{numbers['sequences']:,} examples"
        )
    return "\n".join(lines)


def show_paper_table(rows: list[Row], labels: tuple[str, ...]) -> str:
    """A paper table as text: printed and ours side by side, ``=`` where every digit agrees."""
    header = [*labels]
    for figure in rows[0].figures:
        header += [figure.column, "ours", ""]
    body = []
    notes: list[str] = []
    for row in rows:
        cells = list(row.labels)
        for figure in row.figures:
            mark = "="
            if not figure.reproduced:
                if figure.note not in notes:
                    notes.append(figure.note)
                mark = f"({notes.index(figure.note) + 1})"
            cells += [figure.printed, figure.shown, mark]
        body.append(cells)
    return text_table(header, body, left=len(labels)) + "".join(f"\n({i}) printed: {n}" for i, n in enumerate(notes, 1))


def paper_json() -> dict[str, Any]:
    """Tables 2 and 3 and Figure 2 as data."""

    def rows(table: list[Row]) -> list[dict[str, Any]]:
        return [
            {"labels": row.labels, "figures": [asdict(f) | {"reproduced": f.reproduced} for f in row.figures]}
            for row in table
        ]

    return {"table_2": rows(table_2()), "table_3": rows(table_3()), "figure_2": figure_2(), "remarks": TABLE_3_REMARKS}


def show_paper() -> str:
    """Everything that ``--paper`` prints."""
    bars = text_table(
        ("pre-training sparsity", "pre-training", "fine-tuning", "saved"),
        [
            (f"{r['sparsity']:.0%}", f"{r['pretraining']:.4e}", f"{r['finetuning']:.4e}", f"{r['reduction']:.1%}")
            for r in figure_2()
        ],
    )
    return "\n".join(
        [
            "Table 2: pre-training FLOPs, printed and ours ('=': every printed digit)",
            show_paper_table(table_2(), ("model", "sparsity")),
            "",
            "Table 3: dense fine-tuning FLOPs, printed and ours",
            show_paper_table(table_3(), ("task", "model")),
            *TABLE_3_REMARKS,
            "",
            "Blog, Figure 2: GPT-3 XL on the Pile, then Curation Corpus (FLOPs)",
            bars,
            FIGURE_2_REMARK,
        ]
    )


def refuse_arguments(given: dict[str, object], what: str) -> None:
    """Raise UserError for the first of the ``given`` arguments that is set: ``what`` takes none of them."""
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name}: does not apply to {what}")


def run(args: argparse.Namespace) -> int:
    finetuning_only = {"--model": args.model, "--examples": args.examples}
    if args.paper:
        refuse_arguments({f"'{args.config}'": args.config} | finetuning_only, "--paper")
        print(json.dumps({"schema_version": 1} | paper_json()) if args.json else show_paper())
        return 0
    if args.config is None:
        raise UserError("name a config, or ask for --paper")
    if args.examples is not None and args.examples < 1:
        raise UserError(f"--examples: must be 1 or more, got {args.examples}")
    tree = load_tree(args.config, args.overrides)
    if kind_of(tree) is FinetuneConfig:
        numbers = finetuning(config_from_tree(FinetuneConfig, tree), args.model, args.examples)
        text = show_finetuning(numbers)
    else:
        refuse_arguments(finetuning_only, "a pre-training config")
        numbers = pretraining(config_from_tree(PretrainConfig, tree))
        text = show_pretraining(numbers)
    print(json.dumps({"schema_version": 1, "config": args.config} | numbers) if args.json else text)
    return 0
