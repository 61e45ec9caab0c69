"""Compiles every launch configuration without a GPU and reads the machine code.

`python -m spdf_kernels.triton.machine_code` prints the result. Triton includes ptxas, cuobjdump and nvdisasm. The
result has registers, spills to local memory, shared memory, and the tensor-core instructions (HGMMA on sm_90, HMMA on
sm_80). A wait after every HGMMA means that ptxas serialised them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spdf_kernels.triton import cross_entropy, kernels, layer_kernels, layers
from spdf_kernels.triton.configurations import CHUNK, CONFIGURATIONS, GROUP, SHARED_MEMORY, Configuration, Tile

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Build(NamedTuple):
    """One kernel to compile: its constants, and in `divisible` the sizes that are multiples of 16."""

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    tile: Tile
    capability: int
    tensor_cores: bool = True
    divisible: tuple[str, ...] = ()


class Code(NamedTuple):
    """Facts about the machine code of one kernel."""

    registers: int
    stack: int
    spills: int
    shared: int
    tensor_instructions: int
    waits: int
    bulk_loads: int
    asynchronous_loads: int


def box(*shape: int) -> str:
    """Triton's type of a tensor descriptor."""
    return f"tensordesc<bf16[{','.join(map(str, shape))}]>"


def spmm_builds(capability: int, B: int, setting: Configuration) -> Iterator[Build]:
    """y and dX, through pointers and descriptors."""
    pointers = dict.fromkeys(("x", "values", "y", "bias"), "*bf16")
    lists = dict.fromkeys(("start", "block", "base", "kept", "where"), "*i32")
    sizes = dict.fromkeys(("T", "I", "O"), "i32")
    for transposed in (False, True):
        product = "dX" if transposed else "y"
        common = {"B": B, "GROUP": GROUP, "TRANSPOSED": transposed, "BIAS": not transposed}
        bias = {} if not transposed else {"bias": None}
        tile = setting.spmm
        constants = {**common, **bias, "BT": tile.tokens, "BK": min(tile.step, B)}
        yield Build(
            f"spmm {product} B={B}", kernels.spmm, {**pointers, **lists, **sizes}, constants, tile, capability, True,
            ("I", "O"),
        )  # fmt: skip
        boxed = setting.spmm_box_T if transposed else setting.spmm_box
        if boxed is not None:
            BK = min(boxed.step, B)
            boxes = {
                "x_box": box(boxed.tokens, BK),
                "values_box": box(BK, B) if transposed else box(B, BK),
            }
            constants = {**common, **bias, "BT": boxed.tokens, "BK": BK}
            yield Build(
                f"spmm_box {product} B={B}", kernels.spmm_box, {**boxes, **pointers, **lists, **sizes}, constants,
                boxed, capability, True, ("O",),
            )  # fmt: skip


def sddmm_builds(capability: int, B: int, setting: Configuration) -> Iterator[Build]:
    """dW, through pointers and descriptors, for one or several blocks per program, with or without token shares."""
    lists = dict.fromkeys(("row", "column", "base", "kept"), "*i32")
    sizes = dict.fromkeys(("T", "O", "I", "nnz", "SPLIT", "KEPT"), "i32")
    tile, boxed = setting.sddmm, setting.sddmm_box
    for out in ("bf16", "fp32"):
        tensors = {"dy": "*bf16", "x": "*bf16", "out": f"*{out}"}
        yield Build(
            f"sddmm {out} B={B}", kernels.sddmm, {**tensors, **lists, **sizes}, {"B": B, "BT": tile.tokens}, tile,
            capability, True, ("O", "I", "nnz"),
        )  # fmt: skip
        if boxed is None:
            continue
        for group in sorted({1, boxed.group}):
            boxes = {
                "dy_box": box(boxed.tokens, B),
                "x_box": box(boxed.tokens, B),
            }
            constants = {"B": B, "G": group, "BT": boxed.tokens}
            yield Build(
                f"sddmm_box {out} G={group} B={B}", kernels.sddmm_box,
                {**boxes, **tensors, **lists, **sizes}, constants,
                boxed, capability, True, ("O",),
            )  # fmt: skip


def expand_builds(capability: int) -> Iterator[Build]:
    """The kernels of unstructured masks, and the loss."""
    tile = Tile(0, 0, 8, 3)
    pointers = {"bits": "*u8", "before": "*i64", "numel": "i32"}
    for name, tensors in (("expand", ("values", "weight")), ("gather", ("dweight", "dvalues"))):
        signature = {**dict.fromkeys(tensors, "*bf16"), **pointers}
        yield Build(
            name, getattr(kernels, name), signature, {"CHUNK": CHUNK}, tile, capability, False, ("numel",)
        )  # fmt: skip
    signature = {
        "logits": "*bf16", "labels": "*i64", **dict.fromkeys(("loss", "found", "lse"), "*fp32"),
        **dict.fromkeys(("C", "V", "REAL", "START", "ignored"), "i32"),
        **dict.fromkeys(("smoothing", "of_uniform"), "fp32"),
    }  # fmt: skip
    loss_tile = Tile(0, 0, cross_entropy.WARPS, 3)
    for name in ("cross_entropy", "shard_statistics", "shard_gradient"):
        constants = {"BLOCK": cross_entropy.BLOCK} | ({"GRADIENT": True} if name == "cross_entropy" else {})
        yield Build(name, getattr(kernels, name), signature, constants, loss_tile, capability, False, ("V",))
    signature = {
        **dict.fromkeys(("x", "weight", "y", "bias"), "*bf16"),
        "bits": "*u8",
        **dict.fromkeys(("T", "F", "K", "stride_f", "stride_k"), "i32"),
    }
    constants = {"BT": 64, "BF": 16, "BK": 8, "BIAS": True, "stride_k": 1}
    yield Build(
        "only_kept_entries", kernels.only_kept_entries, signature, constants, Tile(0, 0, 4, 3), capability, False,
        ("F", "K", "stride_f"),
    )  # fmt: skip


def layer_builds(capability: int) -> Iterator[Build]:
    """Norms and activation functions, at the width of GPT-3 XL, and with dropout at the largest width."""
    tensors = ("x", "bias", "residual", "weight", "shift", "h", "y", "dy", "dh", "dx", "dresidual")
    signature = {
        **dict.fromkeys(tensors, "*bf16"),
        **dict.fromkeys(("mean", "rstd", "sums"), "*fp32"),
        **dict.fromkeys(("T", "D", "F", "threshold"), "i32"),
        **dict.fromkeys(("eps", "scale"), "fp32"),
        "seed": "i64",
    }
    for width, drop in ((2048, False), (layers.MAX_FEATURES, True)):
        block = layers.block_of(width)
        flags = {"BLOCK": block, "BIAS": True, "DROP": drop, "NORM": True, "CENTRED": True}
        tile = Tile(0, 0, layers.warps_of(block), 3)
        for name, flag in (("add_norm", "ADD"), ("add_norm_backward", "DH")):
            yield Build(
                f"{name} {width}", getattr(layer_kernels, name), signature, {**flags, flag: True}, tile, capability,
                False, ("D",),
            )  # fmt: skip
    tile = Tile(0, 0, layers.ACTIVATION_WARPS, 3)
    for name in ("bias_gelu", "bias_gelu_backward", "swiglu", "swiglu_backward"):
        constants: dict[str, Any] = {"BLOCK": layers.FEATURES} | ({"BIAS": True} if "gelu" in name else {})
        yield Build(name, getattr(layer_kernels, name), signature, constants, tile, capability, False, ("F",))


def rotary_builds(capability: int) -> Iterator[Build]:
    """Rotary positions at the head size of Llama."""
    strides = [f"{part}_{axis}" for part in "qkv" for axis in "tbh"]
    signature = {
        **dict.fromkeys(("qkv", "dq", "dk", "dv", "dqkv"), "*bf16"),
        **dict.fromkeys(("cos", "sin"), "*fp32"),
        **dict.fromkeys(("B", "WIDTH", "ROTATED", "HALF", "H", "G", *strides), "i32"),
    }
    half = 64
    constants = {"HEADS": layers.heads_of_program(half), "BLOCK": layers.block_of_half(half)}
    tile = Tile(0, 0, layers.ACTIVATION_WARPS, 3)
    for name in ("rotary", "rotary_backward"):
        yield Build(
            name, getattr(layer_kernels, name), signature, constants, tile, capability, False,
            ("WIDTH", "HALF", *strides),
        )  # fmt: skip


def builds(capability: int) -> Iterator[Build]:
    """All kernels for a chip of `capability` (80, 90)."""
    for (chip, block), setting in CONFIGURATIONS.items():
        if chip == capability:
            yield from spmm_builds(capability, block, setting)
            yield from sddmm_builds(capability, block, setting)
    yield from expand_builds(capability)
    yield from layer_builds(capability)
    yield from rotary_builds(capability)


def compiled(build: Build) -> Any:
    """The compiled kernel."""
    names = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.signature[name] for name in names}
    # Pointers and sizes that are multiples of 16 allow wide loads. A launch detects this; here it must be declared.
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*") or (name in build.divisible and name not in build.constants)
    }
    constants = {(names.index(name),): value for name, value in build.constants.items()}
    source = ASTSource(fn=build.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": build.tile.warps, "num_stages": build.tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", build.capability, 32), options=options)


def code_of(build: Build) -> Code:
    """Compile a kernel and read its machine code."""
    kernel = compiled(build)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([str(TOOLS / tool), flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    return Code(
        registers=int(re.findall(r"REG:(\d+)", usage)[-1]),
        stack=int(re.findall(r"STACK:(\d+)", usage)[-1]),
        spills=count(r"\b(?:LDL|STL)\b"),
        shared=kernel.metadata.shared,
        tensor_instructions=count(r"\bHGMMA" if build.capability >= 90 else r"\bHMMA"),
        waits=count(r"WARPGROUP\.DEPBAR"),
        bulk_loads=count(r"\bUTMALDG"),
        asynchronous_loads=count(r"\bLDGSTS"),
    )


def faults(build: Build, code: Code) -> list[str]:
    """Faults of a kernel's machine code; empty if there are none."""
    found = []
    if code.spills or code.stack:
        found.append(f"spills: {code.spills} instructions, {code.stack} bytes of stack")
    if code.shared > SHARED_MEMORY[build.capability]:
        found.append(f"{code.shared} bytes of shared memory, {SHARED_MEMORY[build.capability]} are there")
    if build.tensor_cores and not code.tensor_instructions:
        found.append("no tensor-core instruction")
    if build.tensor_cores and build.capability >= 90 and code.waits >= code.tensor_instructions:
        found.append(f"wgmma serialised: {code.waits} waits for {code.tensor_instructions}")
    if "box" in build.name and not code.bulk_loads:
        found.append("no bulk tensor load")
    return found


def programs_of_processor(build: Build, code: Code) -> int:
    """Programs that fit on one multiprocessor at the same time, by registers and shared memory."""
    by_registers = 65536 // (max(code.registers, 1) * 32 * build.tile.warps)
    return min(by_registers, SHARED_MEMORY[build.capability] // (code.shared + 1024))


def main() -> int:
    """Print one line per kernel; return 1 if one has a fault."""
    print(f"triton {triton.__version__}")
    bad = 0
    for capability in (90, 80):
        for build in builds(capability):
            code = code_of(build)
            wrong = faults(build, code)
            bad += bool(wrong)
            at_once = programs_of_processor(build, code)
            print(
                f"sm_{capability} {build.name:24} {'ok' if not wrong else '; '.join(wrong)}: "
                f"{code.registers} registers, {code.shared} bytes shared, {at_once} at once, "
                f"{code.tensor_instructions} tensor instructions, {code.waits} waits, {code.bulk_loads} bulk, "
                f"{code.asynchronous_loads} asynchronous loads",
                flush=True,
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
