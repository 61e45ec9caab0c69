# mypy: ignore-errors
"""Triton kernels of a layer outside its products: residual addition with norm, and activation functions.

Legend: T rows (tokens), D features of a row, F features of the hidden layer, P programs of a sum over rows.

All kernels compute in float32 and use no atomics. A kernel that sums over rows writes one sum per program, so that the
same sizes give the same bits each time. The number of rows does not specialise a kernel.
"""

import triton
import triton.language as tl


@triton.jit
def _kept(seed, row, threshold, BLOCK: tl.constexpr):
    """Whether dropout keeps each of BLOCK features of a row: 24 random bits are at least `threshold`.

    The bits depend on the seed, the row and the feature only, so that the backward pass draws them again.
    """
    at = tl.cast(row, tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    a, b, c, d = tl.randint4x(seed, at)
    bits = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), [BLOCK])
    return (bits.to(tl.uint32, bitcast=True) >> 8).to(tl.int32) >= threshold


@triton.jit(do_not_specialize=["seed", "threshold"])
def add_norm(
    x, bias, residual, weight, shift, h, y, mean, rstd, D, eps, seed, threshold, scale,
    BLOCK: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr, DROP: tl.constexpr, NORM: tl.constexpr,
    CENTRED: tl.constexpr,
):  # fmt: skip
    """One row per program. ADD: h = residual + dropout(x + bias), else h = x. NORM: y = norm(h) * weight + shift.

    CENTRED: layer norm, else RMS norm without a shift. mean and rstd, float32 [T], are kept for the backward pass.
    """
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    inside = d < D
    at = tl.cast(row, tl.int64) * D + d
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        if BIAS:
            value += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
        if DROP:
            value = tl.where(_kept(seed, row, threshold, BLOCK), value * scale, 0.0)
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(h.dtype.element_ty)
        tl.store(h + at, rounded, mask=inside)
        value = rounded.to(tl.float32)  # the backward pass normalises what is stored
    if NORM:
        if CENTRED:
            centre = tl.sum(value, 0) / D
            tl.store(mean + row, centre)
            value = tl.where(inside, value - centre, 0.0)
        reciprocal = tl.rsqrt(tl.sum(value * value, 0) / D + eps)
        tl.store(rstd + row, reciprocal)
        value = value * reciprocal * tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
        if CENTRED:
            value += tl.load(shift + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "seed", "threshold"])
def add_norm_backward(
    dy, dh, h, weight, mean, rstd, dresidual, dx, sums, T, D, seed, threshold, scale,
    BLOCK: tl.constexpr, DH: tl.constexpr, BIAS: tl.constexpr, DROP: tl.constexpr, NORM: tl.constexpr,
    CENTRED: tl.constexpr,
):  # fmt: skip
    """The gradients of `add_norm`. Each of P programs takes every P-th row.

    dresidual [T, D] is the gradient of h: dh, with DH, and that through the norm. It is stored with NORM only, because
    without a norm it is dh. dx [T, D], stored with DROP only, is that of x, else x has dresidual. sums, float32
    [3, P, D], has one row per program, whose sums are the gradients of weight, shift (CENTRED) and bias (BIAS).
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    d = tl.arange(0, BLOCK)
    inside = d < D
    sum_weight = tl.zeros((BLOCK,), tl.float32)
    sum_shift = tl.zeros((BLOCK,), tl.float32)
    sum_bias = tl.zeros((BLOCK,), tl.float32)
    for row in range(program, T, programs):
        at = tl.cast(row, tl.int64) * D + d
        gradient = tl.zeros((BLOCK,), tl.float32)
        if NORM:
            dy_D = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
            normal = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
            reciprocal = tl.load(rstd + row)
            if CENTRED:
                normal = tl.where(inside, normal - tl.load(mean + row), 0.0)
            normal *= reciprocal
            scaled = dy_D * tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
            through = scaled - normal * (tl.sum(normal * scaled, 0) / D)
            if CENTRED:
                through -= tl.sum(scaled, 0) / D
                sum_shift += dy_D
            sum_weight += dy_D * normal
            gradient = through * reciprocal
        if DH:
            gradient += tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            tl.store(dresidual + at, gradient.to(dresidual.dtype.element_ty), mask=inside)
        if DROP:
            gradient = tl.where(_kept(seed, row, threshold, BLOCK), gradient * scale, 0.0)
            tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)
        if BIAS:
            sum_bias += gradient
    here = sums + program.to(tl.int64) * D + d
    step = programs.to(tl.int64) * D
    if NORM:
        tl.store(here, sum_weight, mask=inside)
        if CENTRED:
            tl.store(here + step, sum_shift, mask=inside)
    if BIAS:
        tl.store(here + 2 * step, sum_bias, mask=inside)


@triton.jit
def _gelu_gate(x):
    """(sigmoid(2 u), du/dx) of u = sqrt(2 / pi) (x + 0.044715 x^3). 0.5 (1 + tanh(u)) is sigmoid(2 u)."""
    square = x * x
    u = 0.7978845608028654 * x * (1 + 0.044715 * square)
    return tl.sigmoid(2 * u), 0.7978845608028654 * (1 + 3 * 0.044715 * square)


@triton.jit(do_not_specialize=["T"])
def bias_gelu(x, bias, y, T, F, BLOCK: tl.constexpr, BIAS: tl.constexpr):
    """y [T, F] = gelu(x + bias), its tanh form. A program has BLOCK features of every P-th row."""
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = f < F
    if BIAS:
        b = tl.load(bias + f, mask=inside, other=0.0).to(tl.float32)
    for row in range(tl.program_id(1), T, tl.num_programs(1)):
        at = tl.cast(row, tl.int64) * F + f
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            value += b
        gate, _ = _gelu_gate(value)
        tl.store(y + at, (value * gate).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T"])
def bias_gelu_backward(dy, x, bias, dx, sums, T, F, BLOCK: tl.constexpr, BIAS: tl.constexpr):
    """dx [T, F] of `bias_gelu`, and with BIAS the bias's gradient as one row of sums, float32 [P, F], per program."""
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = f < F
    total = tl.zeros((BLOCK,), tl.float32)
    if BIAS:
        b = tl.load(bias + f, mask=inside, other=0.0).to(tl.float32)
    for row in range(tl.program_id(1), T, tl.num_programs(1)):
        at = tl.cast(row, tl.int64) * F + f
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            value += b
        gate, slope = _gelu_gate(value)
        gradient = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        gradient *= gate + 2 * value * gate * (1 - gate) * slope
        tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)
        total += gradient
    if BIAS:
        tl.store(sums + tl.program_id(1).to(tl.int64) * F + f, total, mask=inside)


@triton.jit(do_not_specialize=["T"])
def swiglu(x, y, T, F, BLOCK: tl.constexpr):
    """y [T, F] = silu(gate) * rest of x [T, 2 F], which holds the gate and then the rest of each row."""
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = f < F
    for row in range(tl.program_id(1), T, tl.num_programs(1)):
        at = tl.cast(row, tl.int64) * F + f
        own = x + tl.cast(row, tl.int64) * (2 * F) + f
        gate = tl.load(own, mask=inside, other=0.0).to(tl.float32)
        rest = tl.load(own + F, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + at, (gate * tl.sigmoid(gate) * rest).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T"])
def swiglu_backward(dy, x, dx, T, F, BLOCK: tl.constexpr):
    """dx [T, 2 F] of `swiglu`."""
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = f < F
    for row in range(tl.program_id(1), T, tl.num_programs(1)):
        own = tl.cast(row, tl.int64) * (2 * F) + f
        gate = tl.load(x + own, mask=inside, other=0.0).to(tl.float32)
        rest = tl.load(x + own + F, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + tl.cast(row, tl.int64) * F + f, mask=inside, other=0.0).to(tl.float32)
        open = tl.sigmoid(gate)
        dgate = gradient * rest * open * (1 + gate * (1 - open))
        tl.store(dx + own, dgate.to(dx.dtype.element_ty), mask=inside)
        tl.store(dx + own + F, (gradient * gate * open).to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _rotated(first, second, cos, sin):
    """The pairs (first, second) rotated by the angles of cos and sin."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit(do_not_specialize=["B"])
def rotary(qkv, cos, sin, B, WIDTH, ROTATED, HALF, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Rotate the pairs (i, i + HALF) of the first ROTATED heads of each row of qkv [T * B, WIDTH], in place.

    A head has 2 * HALF features. Row t * B + b has position t, and the angles of cos and sin, float32 [T, HALF]. A
    program has HEADS heads of a row.
    """
    row = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, BLOCK)
    inside = (head[:, None] < ROTATED) & (i[None, :] < HALF)
    angle = row // B * HALF + i
    c = tl.load(cos + angle, mask=i < HALF, other=0.0)[None, :]
    s = tl.load(sin + angle, mask=i < HALF, other=0.0)[None, :]
    at = qkv + tl.cast(row, tl.int64) * WIDTH + head[:, None] * (2 * HALF) + i[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    first, second = _rotated(first, second, c, s)
    tl.store(at, first.to(qkv.dtype.element_ty), mask=inside)
    tl.store(at + HALF, second.to(qkv.dtype.element_ty), mask=inside)


@triton.jit
def _head(part, head, heads, row, B, stride_t, stride_b, stride_h):
    """(addresses, existence) of the first features of those of `head` that are among the `heads` of a row of `part`."""
    there = (head >= 0) & (head < heads)
    t = tl.cast(row // B, tl.int64)
    return part + t * stride_t + tl.cast(row % B, tl.int64) * stride_b + tl.where(there, head, 0) * stride_h, there


@triton.jit(do_not_specialize=["B"])
def rotary_backward(
    dq, dk, dv, dqkv, cos, sin, B, H, G, HALF,
    q_t, q_b, q_h, k_t, k_b, k_h, v_t, v_b, v_h,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dqkv [T * B, (H + 2 G) * 2 HALF] of `rotary`: dq and dk rotated back, and dv.

    dq [T, B, H, 2 HALF], dk and dv [T, B, G, 2 HALF] have any strides (q_t, q_b, q_h, ...) but 1 for the features. A
    program has HEADS of the H + 2 G heads of a row.
    """
    row = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, BLOCK)
    own = i[None, :] < HALF
    from_q, in_q = _head(dq, head, H, row, B, q_t, q_b, q_h)
    from_k, in_k = _head(dk, head - H, G, row, B, k_t, k_b, k_h)
    from_v, in_v = _head(dv, head - H - G, G, row, B, v_t, v_b, v_h)
    source = tl.where(in_q, from_q, tl.where(in_k, from_k, from_v))[:, None] + i[None, :]
    inside = (in_q | in_k | in_v)[:, None] & own
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = row // B * HALF + i
    turns = (in_q | in_k)[:, None]
    c = tl.where(turns, tl.load(cos + angle, mask=i < HALF, other=0.0)[None, :], 1.0)
    s = tl.where(turns, tl.load(sin + angle, mask=i < HALF, other=0.0)[None, :], 0.0)
    first, second = _rotated(first, second, c, -s)
    at = dqkv + (tl.cast(row, tl.int64) * (H + 2 * G) + head[:, None]) * (2 * HALF) + i[None, :]
    tl.store(at, first.to(dqkv.dtype.element_ty), mask=inside)
    tl.store(at + HALF, second.to(dqkv.dtype.element_ty), mask=inside)
