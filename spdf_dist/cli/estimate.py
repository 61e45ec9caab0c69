"""Memory, traffic, time and cost of a pre-training config on a GPU cluster: an estimate by a roofline model.

  spdf estimate gpt3_xl_s75 --nodes 4 --gpus-per-node 8 --gpu h100 --gpu-hour-price 2.50

The output has the memory of one GPU by part (dense, masked and compressed), the data that it sends per step, the time
to the token budget at a stated efficiency, and the layouts (tensor x data parallel, ZeRO stage, micro-batch) that fit,
the fastest first."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from spdf_dist.accounting.estimate import EFFICIENCY, HEADROOM, LINK_SHARE, NETWORK_BANDWIDTH, Cluster, estimate
from spdf_dist.accounting.hardware import GPUS, find_gpu
from spdf_dist.accounting.plan import bytes_text
from spdf_dist.accounting.text_table import text_table
from spdf_dist.config.errors import UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig

HELP = "memory, traffic, time and cost of a config on a cluster"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="sets a config key; may be repeated")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, required=True)
    parser.add_argument("--gpu", default="h100", help=f"one of {', '.join(GPUS)} (default h100)")
    parser.add_argument("--gpu-hour-price", type=float, help="price of one GPU for one hour, in your currency")
    parser.add_argument(
        "--efficiency",
        type=float,
        default=EFFICIENCY,
        help="share of the dense peak that a step reaches (default 0.40)",
    )
    parser.add_argument(
        "--network", type=float, default=NETWORK_BANDWIDTH / 1e9, help="GB/s per GPU between nodes (default 50)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def layout_text(layout: dict[str, Any]) -> str:
    """A layout in a few words."""
    text = (
        f"TP{layout['tensor']} x DP{layout['data']}, ZeRO {layout['zero_stage']}, micro-batch {layout['micro_batch']}"
    )
    text += ", sequence-parallel" if layout["sequence"] else ""
    return text + (", recomputing" if layout["activation_checkpointing"] else "")


def show(summary: dict[str, Any], price: float | None) -> str:
    """``estimate`` for a person."""
    gpu, seconds, traffic = summary["gpu"], summary["step_seconds"], summary["communication_bytes_per_step"]
    room = HEADROOM * gpu["memory_bytes"]
    cost = "" if summary["cost"] is None else f", {summary['cost']:,.0f} at {price:g} per GPU hour"
    fits = "fits" if summary["fits"] else "does NOT fit"
    parts = [part for part in summary["memory_bytes"] if any(m[part] for m in summary["memory_by_execution"].values())]
    executions = list(summary["memory_by_execution"])
    lines = [
        f"ESTIMATE (roofline, not a measurement): {summary['gpus']} x {gpu['name']}, {summary['nodes']} nodes",
        f"layout   {layout_text(summary['layout'])}, {summary['layout']['precision']}, "
        f"{summary['layout']['execution']}",
        f"memory   {bytes_text(summary['memory_bytes']['total'])} per GPU, {fits} in {bytes_text(room)} "
        f"({HEADROOM:.0%} of {bytes_text(gpu['memory_bytes'])})",
        f"step     {seconds['total']:.3f} s: compute {seconds['compute']:.3f}, optimizer {seconds['optimizer']:.3f}, "
        f"tensor-parallel {seconds['tensor_parallel']:.3f}, data-parallel {seconds['data_parallel']:.3f}",
        f"traffic  {bytes_text(traffic['tensor_sent'])} tensor-parallel, "
        f"{bytes_text(traffic['data_sent'])} data-parallel, "
        "sent per GPU and step",
        *(
            ["         tensor-parallel groups span several nodes, so their reductions use the network"]
            if summary["assumptions"]["tensor_parallel_leaves_the_node"]
            else []
        ),
        f"run      {summary['steps']:,} steps, {summary['hours']:,.1f} hours, "
        f"{summary['gpu_hours']:,.0f} GPU hours{cost}",
        f"products {summary['assumptions']['sparse_products']}",
        f"norms and activations take {summary['assumptions']['outside_products_share']:.0%} of a dense step in fused "
        f"kernels; without these, compute takes {summary['assumptions']['unfused_compute_seconds']:.3f} s (estimates)",
        f"speed    {summary['tokens_per_second']:,.0f} tokens/s, MFU {summary['mfu']:.1%}"
        + (" (model FLOPs of the sparse model; masked execution also multiplies the zeros)"
           if summary["assumptions"]["masked_products_multiply_zeros"] else ""),
        "",
        text_table(
            ("memory per GPU", *executions),
            [(part, *(bytes_text(summary["memory_by_execution"][e][part]) for e in executions)) for part in parts],
        ),
        "",
    ]  # fmt: skip
    if summary["best"]:
        lines.append(
            text_table(
                ("layouts that fit, fastest first", "memory", "s per step"),
                [
                    (
                        layout_text(c["layout"]),
                        bytes_text(c["memory_bytes"]["total"]),
                        f"{c['step_seconds']['total']:.3f}",
                    )
                    for c in summary["best"][:8]
                ],
            )
        )
    else:
        lines.append("No layout of this cluster fits: choose GPUs with more memory, or compressed execution.")
    lines.append(
        f"\nAssumed: {summary['assumptions']['efficiency']:.0%} of the dense {summary['layout']['precision']} peak, "
        f"{LINK_SHARE:.0%} of the links' rates, "
        f"{summary['assumptions']['network_bytes_per_second'] / 1e9:g} GB/s per GPU between nodes, "
        "no overlap of traffic with compute."
    )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    config = load_config(PretrainConfig, args.config, args.overrides)
    for name in ("nodes", "gpus_per_node", "efficiency", "network"):
        if not 0 < getattr(args, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')}: must be positive and finite, got {getattr(args, name)}")
    if args.efficiency > 1:
        raise UserError(f"--efficiency: a share of the peak, at most 1, got {args.efficiency}")
    price = args.gpu_hour_price
    if price is not None and not 0 <= price < math.inf:
        raise UserError(f"--gpu-hour-price: must be 0 or more, got {price}")
    cluster = Cluster(args.nodes, args.gpus_per_node, find_gpu(args.gpu), args.efficiency, args.network * 1e9)
    summary = estimate(config, cluster, price)
    print(json.dumps({"config": args.config} | summary) if args.json else show(summary, price))
    return 0
