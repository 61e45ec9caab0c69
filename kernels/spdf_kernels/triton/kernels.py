# mypy: ignore-errors
# ruff: noqa: E741
"""The Triton kernels.

Legend: T tokens, O out features, I in features, B block edge, N kept blocks, k kept blocks of a block row.

Values are in row-major order of the mask. Block row r of a mask of whole blocks is therefore a dense matrix
[B, k_r * B], which begins at value B * B * start[r]. If every block row keeps k blocks, the values of the whole weight
are the dense matrix [O, k * B].

Kernels named `*_box` read through tensor descriptors (TMA on sm_90), the others through pointers. All kernels store
through pointers, because a descriptor's store needs a second copy of the tile in shared memory, and fewer programs fit
then. All kernels sum in float32 without atomics, so a launch gives the same bits each time. The number of tokens does
not specialise a kernel, because another number would compile it again during a run.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(pid, tiles_T, tiles_F, GROUP: tl.constexpr):
    """Token and feature tile of a program: GROUP token tiles with all feature tiles precede the next GROUP."""
    width = GROUP * tiles_F
    group = pid // width
    first = group * GROUP
    size = min(tiles_T - first, GROUP)
    return first + (pid % width) % size, (pid % width) // size


@triton.jit(do_not_specialize=["T"])
def spmm_box(
    x_box, values_box, y, bias, start, where, T, O,
    B: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, TRANSPOSED: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """y [T, O] = x W^T + bias, or with TRANSPOSED y = x W. Each block row keeps the same number of blocks.

    x_box [T, inputs] in boxes [BT, BK]; values_box [rows of W, k * B] in boxes [B, BK] (TRANSPOSED: [BK, B]). Blocks
    start[f] to start[f + 1] contribute to feature block f. where[e] is the block column of block e; TRANSPOSED: its
    index within its block row << 12 | its block row.

    With the loop over tiles any grid is correct. The loop also prevents Triton 3.6 from serialising the wgmma
    instructions.
    """
    PARTS: tl.constexpr = B // BK
    tiles_T = tl.cdiv(T, BT)
    for tile in range(tl.program_id(0), tiles_T * (O // B), tl.num_programs(0)):
        tile_T, tile_F = _tile(tile, tiles_T, O // B, GROUP)
        begin = tl.load(start + tile_F)
        count = (tl.load(start + tile_F + 1) - begin) * PARTS
        acc = tl.zeros((BT, B), tl.float32)
        for step in range(0, count):
            part = step % PARTS
            at = tl.load(where + begin + step // PARTS)
            block = at & 4095 if TRANSPOSED else at
            x = x_box.load([tile_T * BT, block * B + part * BK])
            if TRANSPOSED:
                acc = tl.dot(x, values_box.load([block * B + part * BK, (at >> 12) * B]), acc, input_precision="ieee")
            else:
                acc = tl.dot(x, values_box.load([tile_F * B, step * BK]).T, acc, input_precision="ieee")
        t = tile_T * BT + tl.arange(0, BT)
        f = tile_F * B + tl.arange(0, B)
        if BIAS:
            acc += tl.load(bias + f).to(tl.float32)[None, :]
        y_TF = y + t[:, None].to(tl.int64) * O + f[None, :]
        tl.store(y_TF, acc.to(y.dtype.element_ty), mask=t[:, None] < T)


@triton.jit(do_not_specialize=["T"])
def spmm(
    x, values, y, bias, start, block, base, kept, T, I, O,
    B: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, TRANSPOSED: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """y [T, O] = x [T, I] W^T + bias, or with TRANSPOSED y = x W, for any number of blocks per block row.

    Blocks start[f] to start[f + 1] contribute to feature block f. block[e] is the block of x's features that block e
    multiplies, base[e] the index of its first value / B, kept[e] the number of blocks in its block row.
    """
    PARTS: tl.constexpr = B // BK
    tiles_T = tl.cdiv(T, BT)
    for tile in range(tl.program_id(0), tiles_T * (O // B), tl.num_programs(0)):
        tile_T, tile_F = _tile(tile, tiles_T, O // B, GROUP)
        t = tile_T * BT + tl.arange(0, BT)
        n = tl.arange(0, B)
        k = tl.arange(0, BK)
        begin = tl.load(start + tile_F)
        count = tl.load(start + tile_F + 1) - begin
        x_rows = x + t[:, None].to(tl.int64) * I
        inside = t[:, None] < T
        acc = tl.zeros((BT, B), tl.float32)
        for step in range(0, count * PARTS):
            e = begin + step // PARTS
            part = step % PARTS
            a = tl.load(x_rows + (tl.load(block + e) * B + part * BK + k)[None, :], mask=inside, other=0.0)
            if TRANSPOSED:  # w[k, n]: rows part * BK + k of the block, its columns n
                stride = tl.load(kept + e) * B
                w_KB = values + tl.load(base + e).to(tl.int64) * B + (part * BK + k)[:, None] * stride + n[None, :]
                acc = tl.dot(a, tl.load(w_KB), acc, input_precision="ieee")
            else:  # w[n, k]: rows n of the block row, its columns from step * BK on
                w_BK = values + begin.to(tl.int64) * (B * B) + n[:, None] * (count * B) + (step * BK + k)[None, :]
                acc = tl.dot(a, tl.trans(tl.load(w_BK)), acc, input_precision="ieee")
        if BIAS:
            acc += tl.load(bias + tile_F * B + n).to(tl.float32)[None, :]
        tl.store(y + t[:, None].to(tl.int64) * O + (tile_F * B + n)[None, :], acc.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "KEPT", "SPLIT"])
def sddmm_box(
    dy_box, x_box, out, column, T, O, KEPT, SPLIT,
    B: tl.constexpr, G: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Gradient of the values of G neighbouring blocks per program, which share dy. Each block row keeps KEPT blocks.

    dy_box [T, O] and x_box [T, I] in boxes [BT, B]; out [SPLIT, O, KEPT * B]: part s of the tokens sums into out[s].
    column[e] is the block column of block e.
    """
    first = tl.program_id(0) * G
    share = tl.program_id(1)
    row = first // KEPT
    place = first % KEPT
    column_0 = tl.load(column + first) * B
    column_1 = tl.load(column + first + G - 1) * B
    acc_0 = tl.zeros((B, B), tl.float32)
    acc_1 = tl.zeros((B, B), tl.float32)
    steps = tl.cdiv(T, BT)
    per = tl.cdiv(steps, SPLIT)
    for step in range(share * per, min((share + 1) * per, steps)):
        dy_BT = dy_box.load([step * BT, row * B]).T
        acc_0 = tl.dot(dy_BT, x_box.load([step * BT, column_0]), acc_0, input_precision="ieee")
        if G == 2:
            acc_1 = tl.dot(dy_BT, x_box.load([step * BT, column_1]), acc_1, input_precision="ieee")
    f = (share * O + row * B + tl.arange(0, B)).to(tl.int64)
    out_0 = out + f[:, None] * (KEPT * B) + (place * B + tl.arange(0, B))[None, :]
    tl.store(out_0, acc_0.to(out.dtype.element_ty))
    if G == 2:
        tl.store(out_0 + B, acc_1.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["T", "SPLIT"])
def sddmm(
    dy, x, out, row, column, base, kept, T, O, I, nnz, SPLIT,
    B: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Gradient of the values of one block per program: out [SPLIT, nnz], part s of the tokens in out[s].

    row[e] and column[e] are the block row and column of block e, base[e] the index of its first value / B, kept[e] the
    number of blocks in its block row.
    """
    e = tl.program_id(0)
    share = tl.program_id(1)
    o = tl.load(row + e) * B + tl.arange(0, B)
    i = tl.load(column + e) * B + tl.arange(0, B)
    acc = tl.zeros((B, B), tl.float32)
    steps = tl.cdiv(T, BT)
    per = tl.cdiv(steps, SPLIT)
    for step in range(share * per, min((share + 1) * per, steps)):
        t = (step * BT + tl.arange(0, BT)).to(tl.int64)
        inside = t[:, None] < T
        dy_TB = tl.load(dy + t[:, None] * O + o[None, :], mask=inside, other=0.0)
        x_TB = tl.load(x + t[:, None] * I + i[None, :], mask=inside, other=0.0)
        acc = tl.dot(tl.trans(dy_TB), x_TB, acc, input_precision="ieee")
    stride = tl.load(kept + e) * B
    here = out + share.to(tl.int64) * nnz + tl.load(base + e).to(tl.int64) * B
    here = here + tl.arange(0, B)[:, None] * stride + tl.arange(0, B)[None, :]
    tl.store(here, acc.to(out.dtype.element_ty))


@triton.jit
def _kept_entries(bits, before, numel, CHUNK: tl.constexpr):
    """(offsets, existence, kept by the mask, index of the value) of each of this program's CHUNK weights.

    bits: the row-major mask, first entry in the highest bit. before[p]: kept entries before chunk p.
    """
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    here = tl.arange(0, CHUNK)
    inside = begin + here < numel
    byte = tl.load(bits + begin // 8 + here // 8, mask=inside, other=0).to(tl.int32)
    kept = tl.where(inside, (byte >> (7 - here % 8)) & 1, 0)
    place = tl.load(before + tl.program_id(0)) + tl.cumsum(kept, 0) - kept
    return begin + here, inside, kept != 0, place


@triton.jit
def expand(values, bits, before, weight, numel, CHUNK: tl.constexpr):
    """weight [numel]: the values at the entries that the mask keeps, zero elsewhere."""
    here, inside, kept, place = _kept_entries(bits, before, numel, CHUNK)
    tl.store(weight + here, tl.load(values + place, mask=kept, other=0.0), mask=inside)


@triton.jit
def gather(dweight, bits, before, dvalues, numel, CHUNK: tl.constexpr):
    """dvalues: the entries of dweight [numel] that the mask keeps."""
    here, _, kept, place = _kept_entries(bits, before, numel, CHUNK)
    entry = tl.load(dweight + here, mask=kept, other=0.0)
    tl.store(dvalues + place, entry.to(dvalues.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["T"])
def only_kept_entries(
    x, weight, bits, bias, y, T, F, K, stride_f, stride_k,
    BT: tl.constexpr, BF: tl.constexpr, BK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Computes y [T, F] = x [T, K] times a weight over kept entries only, for the rows where x is not finite.

    Before the call y holds the product with the dense weight, which has 0 * Inf = NaN in these rows. A non-finite
    x[t, k] makes y[t, f] non-finite for every f. One column of y therefore shows whether there is work; usually the
    kernel reads this column and returns. weight[f, k] has offset f * stride_f + k * stride_k, and its bit has the same
    position in `bits`.
    """
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    seen = tl.load(y + t.to(tl.int64) * F, mask=t < T, other=0.0).to(tl.float32)
    again = tl.where(seen - seen == 0.0, 0, 1)
    if tl.max(again, 0) > 0:
        rows = (again > 0) & (t < T)
        for begin_f in range(0, F, BF):
            f = begin_f + tl.arange(0, BF)
            acc = tl.zeros((BT, BF), tl.float32)
            for begin_k in range(0, K, BK):
                k = begin_k + tl.arange(0, BK)
                there = (f[:, None] < F) & (k[None, :] < K)
                at = f[:, None].to(tl.int64) * stride_f + k[None, :].to(tl.int64) * stride_k
                w_FK = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
                byte = tl.load(bits + at // 8, mask=there, other=0).to(tl.int32)
                kept = (byte >> (7 - at % 8).to(tl.int32)) & 1
                x_TK = tl.load(
                    x + t[:, None].to(tl.int64) * K + k[None, :], mask=rows[:, None] & (k[None, :] < K), other=0.0
                ).to(tl.float32)
                product = tl.where(kept[None, :, :] != 0, x_TK[:, None, :] * w_FK[None, :, :], 0.0)
                acc += tl.sum(product, 2)
            if BIAS:
                acc += tl.load(bias + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
            place = y + t[:, None].to(tl.int64) * F + f[None, :]
            tl.store(place, acc.to(y.dtype.element_ty), mask=rows[:, None] & (f[None, :] < F))


@triton.jit
def _row_statistics(row, REAL, BLOCK: tl.constexpr):
    """(maximum, sum of exp(x - maximum), sum of x) of the first REAL logits of a row."""
    largest = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    plain = tl.zeros((), tl.float32)
    for begin in range(0, REAL, BLOCK):
        v = begin + tl.arange(0, BLOCK)
        x = tl.load(row + v, mask=v < REAL, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
        largest = larger
        plain += tl.sum(tl.where(v < REAL, x, 0.0), 0)
    return largest, total, plain


@triton.jit
def _row_gradient(row, V, REAL, lse, label, counts, smoothing, of_uniform, BLOCK: tl.constexpr):
    """Replace the logits [V] of a row by the gradient of its loss, which is zero from REAL on and if not `counts`."""
    for begin in range(0, V, BLOCK):
        v = begin + tl.arange(0, BLOCK)
        x = tl.load(row + v, mask=v < REAL, other=-float("inf")).to(tl.float32)
        gradient = tl.exp(x - lse) - of_uniform - tl.where(v == label, 1 - smoothing, 0.0)
        gradient = tl.where(counts & (v < REAL), gradient, 0.0)
        tl.store(row + v, gradient.to(row.dtype.element_ty), mask=v < V)


@triton.jit
def cross_entropy(
    logits, labels, loss, V, REAL, smoothing, of_uniform, ignored,
    BLOCK: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss of one token per program; with GRADIENT its logits [V] are replaced by their gradient.

    loss = lse - (1 - smoothing) logits[label] - of_uniform sum(logits) over the first REAL words; the others are
    padding, whose gradient is zero. A label of `ignored` has neither loss nor gradient.
    """
    row = logits + tl.program_id(0).to(tl.int64) * V
    label = tl.load(labels + tl.program_id(0)).to(tl.int32)
    counts = label != ignored
    largest, total, plain = _row_statistics(row, REAL, BLOCK)
    lse = largest + tl.log(total)
    own = tl.load(row + label, mask=counts, other=0.0).to(tl.float32)
    here = lse - (1 - smoothing) * own - of_uniform * plain
    tl.store(loss + tl.program_id(0), tl.where(counts, here, 0.0))
    if GRADIENT:
        _row_gradient(row, V, REAL, lse, label, counts, smoothing, of_uniform, BLOCK)


@triton.jit(do_not_specialize=["C", "START"])
def shard_statistics(logits, labels, found, C, V, REAL, START, ignored, BLOCK: tl.constexpr):
    """What one token's loss needs of a shard of the vocabulary, whose first word is START: found, float32 [4, C].

    Its rows are the maximum of the first REAL logits, the sum of exp(x - maximum), the sum of x, and the logit of the
    label, which is zero if the label is in another shard or `ignored`.
    """
    token = tl.program_id(0)
    row = logits + token.to(tl.int64) * V
    label = tl.load(labels + token)
    word = (label - START).to(tl.int32)
    here = (label != ignored) & (word >= 0) & (word < REAL)
    largest, total, plain = _row_statistics(row, REAL, BLOCK)
    tl.store(found + token, largest)
    tl.store(found + C + token, total)
    tl.store(found + 2 * C + token, plain)
    tl.store(found + 3 * C + token, tl.load(row + word, mask=here, other=0.0).to(tl.float32))


@triton.jit(do_not_specialize=["START"])
def shard_gradient(logits, labels, lse, V, REAL, START, smoothing, of_uniform, ignored, BLOCK: tl.constexpr):
    """Replace one token's logits [V] of a shard of the vocabulary by their gradient; lse is that of all shards."""
    token = tl.program_id(0)
    label = tl.load(labels + token)
    word = (label - START).to(tl.int32)
    row = logits + token.to(tl.int64) * V
    _row_gradient(row, V, REAL, tl.load(lse + token), word, label != ignored, smoothing, of_uniform, BLOCK)
