"""Memory, traffic, time and cost of a pre-training config on a GPU cluster: an estimate by roofline.

  spdf estimate gpt3_xl_s75 --nodes 4 --gpus-per-node 8 --gpu h100 --gpu-hour-price 2.50

It tells what one GPU holds by part, dense, masked and compressed; what it sends each step; the time to the token budget
at a stated efficiency; and which layouts (tensor x data parallel, ZeRO stage, micro-batch) fit, fastest first."""

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
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values to put on top")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, required=True)
    parser.add_argument("--gpu", default="h100", help=f"one of {', '.join(GPUS)} (default h100)")
    parser.add_argument("--gpu-hour-price", type=float, help="price of one GPU for one hour, in your currency")
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY, help="share of the dense peak (default 0.40)")
    parser.add_argument(
        "--network", type=float, default=NETWORK_BANDWIDTH / 1e9, help="GB/s a GPU between nodes (default 50)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def layout_text(layout: dict[str, Any]) -> str:
    """A layout in a few words."""
    text = (
        f"TP{layout['tensor']} x DP{layout['data']}, ZeRO {layout['zero_stage']}, micro-batch {layout['micro_batch']}"
    )
    text += ", sequence-parallel" if layout["sequence"] else ""
    return text + (", recomputing" if layout["activation_checkpointing"] else "")


def show(facts: dict[str, Any], price: float | None) -> str:
    """``estimate`` for a person."""
    gpu, seconds, traffic = facts["gpu"], facts["step_seconds"], facts["communication_bytes_per_step"]
    room = HEADROOM * gpu["memory_bytes"]
    cost = "" if facts["cost"] is None else f", {facts['cost']:,.0f} at {price:g} a GPU hour"
    fits = "fits" if facts["fits"] else "does NOT fit"
    parts = [part for part in facts["memory_bytes"] if any(m[part] for m in facts["memory_by_execution"].values())]
    executions = list(facts["memory_by_execution"])
    lines = [
        f"ESTIMATE (roofline, not a measurement): {facts['gpus']} x {gpu['name']}, {facts['nodes']} nodes",
        f"layout   {layout_text(facts['layout'])}, {facts['layout']['precision']}, {facts['layout']['execution']}",
        f"memory   {bytes_text(facts['memory_bytes']['total'])} a GPU, {fits} in {bytes_text(room)} "
        f"({HEADROOM:.0%} of {bytes_text(gpu['memory_bytes'])})",
        f"step     {seconds['total']:.3f} s: compute {seconds['compute']:.3f}, optimizer {seconds['optimizer']:.3f}, "
        f"tensor-parallel {seconds['tensor_parallel']:.3f}, data-parallel {seconds['data_parallel']:.3f}",
        f"traffic  {bytes_text(traffic['tensor_sent'])} tensor-parallel, "
        f"{bytes_text(traffic['data_sent'])} data-parallel, "
        "sent per GPU and step",
        *(
            ["         tensor-parallel groups lie on several nodes: their sums run at the network's rate"]
            if facts["assumptions"]["tensor_parallel_leaves_the_node"]
            else []
        ),
        f"run      {facts['steps']:,} steps, {facts['hours']:,.1f} hours, {facts['gpu_hours']:,.0f} GPU hours{cost}",
        f"products {facts['assumptions']['sparse_products']}",
        f"norms and activations take {facts['assumptions']['outside_products_share']:.0%} of a dense step in fused "
        f"kernels; without these, compute takes {facts['assumptions']['unfused_compute_seconds']:.3f} s (estimates)",
        f"speed    {facts['tokens_per_second']:,.0f} tokens/s, MFU {facts['mfu']:.1%}"
        + (" (model FLOPs of the sparse model; masked execution also multiplies the zeros)"
           if facts["assumptions"]["masked_products_multiply_zeros"] else ""),
        "",
        text_table(
            ("memory of a GPU", *executions),
            [(part, *(bytes_text(facts["memory_by_execution"][e][part]) for e in executions)) for part in parts],
        ),
        "",
    ]  # fmt: skip
    if facts["best"]:
        lines.append(
            text_table(
                ("fits, fastest first", "memory", "s a step"),
                [
                    (
                        layout_text(c["layout"]),
                        bytes_text(c["memory_bytes"]["total"]),
                        f"{c['step_seconds']['total']:.3f}",
                    )
                    for c in facts["best"][:8]
                ],
            )
        )
    else:
        lines.append("No layout of this cluster fits: take more memory a GPU, or compressed execution.")
    lines.append(
        f"\nAssumed: {facts['assumptions']['efficiency']:.0%} of the dense {facts['layout']['precision']} peak, "
        f"{LINK_SHARE:.0%} of the links' rates, "
        f"{facts['assumptions']['network_bytes_per_second'] / 1e9:g} GB/s a GPU between nodes, traffic not hidden."
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
    facts = estimate(config, cluster, price)
    print(json.dumps({"config": args.config} | facts) if args.json else show(facts, price))
    return 0
