"""Measure this machine: the sparse products, a whole training step, or the data loader.

  spdf bench gemm                                   linears of GPT-2 Small: forward, dX and dW, over the best dense
  spdf bench gemm --model gpt3_xl --threads 2       linears of GPT-3 XL
  spdf bench gemm --plot speedup.png                figure 1 of the paper's appendix C for this machine, and a CSV
  spdf bench step gpt2_small_s75                    a training step: compressed, masked, dense
  spdf bench data --path PACKED                     the loader

All contenders run in turn in one process, in several rounds. A speed-up is the median over rounds of
(best dense time / time of the contender). The best dense product is the faster of MKL and oneDNN. Times are
processor time on one thread, and wall-clock time on several threads. Other load on the machine lengthens only
the latter."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spdf_dist.accounting.text_table import text_table
from spdf_dist.base.cpu import cores
from spdf_dist.config.errors import EXIT_INTERRUPTED, UserError
from spdf_dist.config.load import load_config
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.sparsity.masks import logical_weights

HELP = "measure the kernels, a training step, or the data loader on this machine"

SCHEMA_VERSION = 1
PLOT_SHAPE = (12288, 12288)
PLOT_TOKENS = 256
PLOT_SPARSITY = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
TOKENS = 2048
ROUNDS, QUICK_ROUNDS = 9, 3
STEP_OVERRIDES = (
    "model.seq_length=1024",
    "training.global_batch_size=2",
    "training.micro_batch_size=2",
    "training.precision=fp32",
    "parallel.zero_stage=0",
    "device=cpu",
)
SPARSITY = (0.5, 0.75, 0.9)


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    gemm = commands.add_parser(
        "gemm", help="the sparse products, compared with the best dense ones and other libraries"
    )
    which = gemm.add_mutually_exclusive_group()
    which.add_argument(
        "--shape", type=parse_shape, action="append", metavar="OUTxIN", help="a weight's shape; may be repeated"
    )
    which.add_argument("--model", metavar="CONFIG", help="the linears of a config (default gpt2_small)")
    gemm.add_argument("--sparsity", type=parse_level, nargs="+", metavar="S", help="levels (default 0.5 0.75 0.9)")
    gemm.add_argument("--tokens", type=parse_count, metavar="N", help=f"tokens per product (default {TOKENS})")
    gemm.add_argument(
        "--threads", type=parse_count, nargs="+", metavar="N", help="thread counts (default: one, and all cores)"
    )
    gemm.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="of weights and activations (default fp32)"
    )
    gemm.add_argument(
        "--rounds",
        type=parse_count,
        metavar="N",
        help=f"interleaved rounds (default {ROUNDS}; with --quick {QUICK_ROUNDS})",
    )
    gemm.add_argument("--quick", action="store_true", help="fewer rounds, no other libraries")
    gemm.add_argument("--no-peers", action="store_true", help="do not measure torch.sparse and SparseProp")
    gemm.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help=f"draw the speed-up over sparsity as .png or .svg, with a CSV beside it, for one shape (default "
        f"{PLOT_SHAPE[0]}x{PLOT_SHAPE[1]} at {PLOT_TOKENS} tokens)",
    )
    gemm.add_argument("--json", action="store_true", help="print one JSON object")
    gemm.set_defaults(work=run_gemm)

    step = commands.add_parser(
        "step",
        help="a whole training step: compressed, masked and dense in turn",
        description="Forward, backward and AdamW of one global batch of random tokens, in one process. Unless "
        f"overridden: {' '.join(STEP_OVERRIDES)}.",
    )
    step.add_argument(
        "config",
        nargs="?",
        default="gpt2_small_s75",
        help="a YAML file or the name of a shipped config (default gpt2_small_s75)",
    )
    step.add_argument("overrides", nargs="*", metavar="key.sub=value", help="sets a config key; may be repeated")
    step.add_argument("--rounds", type=parse_count, default=5, metavar="N", help="interleaved rounds (default 5)")
    step.add_argument("--threads", type=parse_count, metavar="N", help="number of threads (default: all cores)")
    step.add_argument("--json", action="store_true", help="print one JSON object")
    step.set_defaults(work=run_step)

    data = commands.add_parser("data", help="the loader on a packed data set, and a tokenizer")
    data.add_argument("--path", required=True, metavar="DIR", help="a packed folder, or the prefix of Megatron files")
    data.add_argument(
        "--seq-len", type=parse_count, metavar="T", help="tokens per sequence (required for Megatron files)"
    )
    data.add_argument(
        "--batch-size", type=parse_count, default=64, metavar="N", help="sequences per batch (default 64)"
    )
    data.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="duration of a measurement in seconds (default 3)"
    )
    data.add_argument("--tokenizer", metavar="TOK", help="also measure this tokenizer on the text of --input")
    data.add_argument("--input", nargs="+", metavar="FILE", help="text for --tokenizer")
    data.add_argument("--json", action="store_true", help="print one JSON object")
    data.set_defaults(work=run_data)


def parse_shape(text: str) -> tuple[int, int]:
    """``OUTxIN``, both positive."""
    out, cross, width = text.lower().partition("x")
    if not (cross and out.isdecimal() and width.isdecimal() and int(out) and int(width)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a shape such as 3072x768 (out x in)")
    return int(out), int(width)


def parse_level(text: str) -> float:
    """A sparsity of at least 0 and below 1."""
    try:
        level = float(text)
    except ValueError:
        level = -1.0
    if not 0.0 <= level < 1.0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a sparsity: at least 0, below 1")
    return level


def parse_count(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


def run(args: argparse.Namespace) -> int:
    return int(args.work(args))


def note(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def emit(args: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    """The result as JSON or as text."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **data}) if args.json else text)


def linear_shapes(name: str) -> list[tuple[int, int]]:
    """The different [out, in] of a config's prunable matrices."""
    return list(dict.fromkeys(logical_weights(load_config(PretrainConfig, name).model).values()))


def run_gemm(args: argparse.Namespace) -> int:
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {args.plot}: the suffix says the format; it must be .png or .svg")
    if args.plot and (args.model or len(args.shape or ()) > 1):
        raise UserError("--plot draws one shape: give it with --shape OUTxIN")
    shapes = args.shape or ([PLOT_SHAPE] if args.plot else linear_shapes(args.model or "gpt2_small"))
    levels = args.sparsity or list(PLOT_SPARSITY if args.plot else SPARSITY)
    tokens = args.tokens or (PLOT_TOKENS if args.plot else TOKENS)
    import torch
    from spdf_kernels import bench

    from spdf_dist.base.extras import require_extra
    from spdf_dist.base.numbers import duration

    if args.plot:
        require_extra("report", "--plot")
    machine = bench.machine()
    all_cores = int(machine["cores"])
    threads = args.threads or ([all_cores] if args.plot else sorted({1, all_cores}))
    if args.plot and len(threads) > 1:
        raise UserError("--plot draws one thread count: give one with --threads N")
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    cases = [(shape, level, count) for shape in shapes for level in levels for count in threads]
    peaks = {count: bench.fma_peak(count, dtype) for count in threads}
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    peers = not (args.no_peers or args.plot or args.quick)
    results: list[dict[str, Any]] = []
    done = 0
    start = time.monotonic()
    try:
        for shape, level, count in cases:
            rows = bench.measure_gemm(shape, level, tokens, count, dtype, rounds, peaks[count], peers=peers)
            results += rows
            done += 1
            if done == 1 and len(cases) > 1:
                seconds = estimated_seconds(time.monotonic() - start, cases)
                note(f"{len(cases)} cases take about {duration(seconds)} (Ctrl-C ends early with what is measured)")
            for row in rows:
                note(f"[{done}/{len(cases)}] {gemm_line(row)}")
    except KeyboardInterrupt:
        if not results:
            raise
        note(f"stopped: {done} of {len(cases)} cases are measured")
    complete = done == len(cases)
    cases = cases[:done]
    for count in threads:  # again: other work on the machine may have hidden the peak before
        peaks[count] = max(peaks[count] or 0.0, bench.fma_peak(count, dtype) or 0.0) or None
    fed = {cache: bench.fma_fed(size) for cache, size in bench.FED_FROM.items()}
    states = [bench.measure_state(shape, level, dtype) for shape, level in dict.fromkeys(case[:2] for case in cases)]
    data: dict[str, Any] = {
        "machine": machine,
        "threads": max(threads),
        "dtype": args.dtype,
        "tokens": tokens,
        "rounds": rounds,
        "complete": complete,
        "peak_gflops": {str(count): None if peak is None else peak / 1e9 for count, peak in peaks.items()},
        "fed_gflops": {cache: rate and rate / 1e9 for cache, rate in fed.items()},
        "results": results,
        "state": states,
    }
    if args.plot:
        from spdf_dist.report.speedups import write_speedup_figure

        on = f"{threads[0]} thread" + ("s" if threads[0] > 1 else "")
        title = f"{shapes[0][0]} x {shapes[0][1]}, {tokens} tokens, {args.dtype}, {on}"
        table = write_speedup_figure(args.plot, [r for r in results if r["op"] in bench.OPERATIONS], title)
        data["plot"] = {"figure": str(args.plot), "csv": str(table)}
        note(f"wrote {args.plot} and {table}")
    roof = ", ".join(f"{peak / 1e9:.0f} GFLOP/s on {count}" for count, peak in peaks.items() if peak)
    head = f"{machine['cpu']}, {machine['isa']}; FMA peak: {roof} threads; {tokens} tokens, {args.dtype}"
    if all(fed.values()):
        rates = ", ".join(f"{rate / 1e9:.0f} from {cache}" for cache, rate in fed.items() if rate)
        head += f"\nfp32 FMAs that each load 64 bytes: {rates} GFLOP/s per thread"
    emit(args, data, f"{head}\n\n{gemm_table(results)}\n\n{state_table(states)}")
    return 0 if complete else EXIT_INTERRUPTED


def gemm_table(results: Sequence[dict[str, Any]]) -> str:
    """A text table of measured products, one row per product."""
    rows = []
    for r in results:
        row = {
            "out x in": f"{r['out']}x{r['in']}",
            "s": f"{r['sparsity']:.2f}",
            "thr": str(r["threads"]),
            "product": r["op"],
            "back end": r["backend"],
            "ms (quartiles)": f"{r['median_ms']:.2f} ({r['q1_ms']:.2f}-{r['q3_ms']:.2f})",
            "best dense ms": f"{r['best_dense']} {r['dense'][r['best_dense']]['median_ms']:.2f}",
            "speed-up": f"{r['speedup']:.2f}x (>= {r['speedup_lower']:.2f})",
            "limit": f"{r['theoretical']:.1f}x",
            "of peak": "" if r.get("peak_fraction") is None else f"{100 * r['peak_fraction']:.0f}%",
            "others against best dense": "  ".join(
                f"{name} {peer['speedup']:.2f}x" for name, peer in r["peers"].items()
            ),
        }
        rows.append(row)
    return text_table(list(rows[0]), [list(row.values()) for row in rows])


def gemm_line(r: dict[str, Any]) -> str:
    """One line of text for a measured product, for output during the measurement."""
    threads = f"{r['threads']} thread" + ("s" if r["threads"] > 1 else "")
    case = f"{r['out']}x{r['in']} {100 * r['sparsity']:.0f}% {threads} {r['op']} ({r['backend']})"
    return f"{case}: {r['median_ms']:.2f} ms, {r['speedup']:.2f}x dense (>= {r['speedup_lower']:.2f})"


def state_table(states: Sequence[dict[str, Any]]) -> str:
    """A text table of preparation times and sizes of model state."""
    rows = []
    for state in states:
        for label in ("compact", "generated"):
            s = state[label]
            name = [f"{state['out']}x{state['in']}", f"{state['sparsity']:.2f}", label]
            if "missing" in s:
                rows.append([*name, "", "", "", s["missing"]])
                continue
            numbers = (s["index_bytes_per_nonzero"], s["code_bytes_per_nonzero"])
            rows.append([*name, f"{s['prepare_ms']:.1f}", *(f"{n:.2f}" for n in numbers), f"{s['of_dense']:.3f}"])
    head = ["out x in", "s", "path", "prepare ms", "index B/nnz", "code B/nnz", "state / dense"]
    return text_table(head, rows)


def estimated_seconds(first: float, cases: Sequence[tuple[tuple[int, int], float, int]]) -> float:
    """Of all cases (shape, sparsity, threads), from the seconds of the first: in proportion to the multiply-adds."""

    def work(case: tuple[tuple[int, int], float, int]) -> float:
        (rows, columns), level, threads = case
        return rows * columns * (1 + (1 - level)) / threads

    return first * sum(map(work, cases)) / work(cases[0])


def run_step(args: argparse.Namespace) -> int:
    config = load_config(PretrainConfig, args.config, [*STEP_OVERRIDES, *args.overrides])
    if not config.sparsity.is_sparse:
        raise UserError(f"{args.config}: sparsity.level is 0, so there is nothing to compare; set it above 0")
    if config.parallel.tensor * (config.parallel.data or 1) != 1:
        raise UserError("spdf bench step runs in one process: parallel.tensor and parallel.data must be 1")
    from spdf_dist.training.bench import bench_step

    data = bench_step(config, args.rounds, args.threads or cores())
    rows = [
        [
            name,
            f"{r['median_ms']:.0f} ({r['q1_ms']:.0f}-{r['q3_ms']:.0f})",
            f"{r['tokens_per_s']:,.0f}",
            f"{r['speedup']:.2f}x (>= {r['speedup_lower']:.2f})",
            f"{r['theoretical']:.2f}x",
            f"{r['parameters'] / 1e6:.1f}M",
        ]
        for name, r in data["results"].items()
    ]
    head = ["execution", "ms per step (quartiles)", "tokens/s", "against dense", "FLOPs allow", "parameters"]
    about = (
        f"{data['machine']['cpu']}, {data['threads']} threads; {args.config} at sparsity {data['sparsity']:g}, "
        f"{data['tokens']} tokens of sequences of {data['seq_length']}, {data['precision']}"
    )
    emit(args, {"config": args.config, **data}, f"{about}\n\n{text_table(head, rows)}\n\n{state_text(data['state'])}")
    return 0


def state_text(state: dict[str, Any]) -> str:
    """A line for each path of the kernels: preparation and model state of the sparsified weights."""
    lines = []
    for path in ("compact", "generated"):
        summary = state[path]
        if "missing" in summary:
            lines.append(f"{path}: {summary['missing']}")
            continue
        lines.append(
            f"{path} ({', '.join(summary['backends'])}): {state['patterns']} patterns prepared in "
            f"{summary['prepare_s']:.2f} s; parameters, gradients, moments, indices and code: "
            f"{summary['of_dense']:.3f} of dense"
        )
    return "\n".join(lines)


def run_data(args: argparse.Namespace) -> int:
    if bool(args.tokenizer) != bool(args.input):
        raise UserError("--tokenizer and --input go together: which tokenizer, on which text")
    from spdf_dist.data.bench import bench, bench_tokenizer

    data: dict[str, Any] = {"loader": bench(args.path, args.seq_len, args.batch_size, args.seconds)}
    loader = data["loader"]
    text = (
        f"loader: {loader['tokens_per_s']:,.0f} tokens/s ({loader['batches']} batches of {loader['batch_size']} x "
        f"{loader['seq_length']} in {loader['seconds']:.1f} s)"
    )
    if args.tokenizer:
        rate = data["tokenizer"] = bench_tokenizer(args.tokenizer, args.input)
        text += (
            f"\ntokenizer: {rate['mb_per_s']:.1f} MB/s, {rate['tokens_per_s']:,.0f} tokens/s on one core, "
            f"{rate['bytes_per_token']:.2f} bytes per token"
        )
    emit(args, data, text)
    return 0
