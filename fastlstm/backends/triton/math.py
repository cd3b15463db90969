"""Device functions shared by every Triton kernel: products, rounding, activations, and which rows a step has.

`dot`, `weights` and `round_to` hold the only branches for Triton's interpreter, whose bfloat16 arithmetic is wrong and
which knows no TF32: there a half value is widened to float32 (exact) before it is used, float32 stays as it is, and
rounding to nearest even is done on the bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); 0 and 1 at -inf and +inf, NaN stays NaN."""
    return 1.0 / (1.0 + tl.exp(-x))


INTERPRETED = tl.constexpr(not isinstance(sigmoid, JITFunction))


@triton.jit
def tanh(x):
    """tanh without overflow: exp(-2|x|) away from zero, and x + x³ p(x²) near it, where the first form would cancel.

    p is a minimax fit on |x| < 0.55 (relative error 3.7e-8); ±1 at ±inf, NaN stays NaN.
    """
    x2 = x * x
    p = 0.016437588721550916
    p = p * x2 - 0.052671818185488106
    p = p * x2 + 0.13320725143983
    p = p * x2 - 0.33332946641422784
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.55, x + x * x2 * p, tl.where(x < 0.0, -y, y))


@triton.jit
def to_tf32(x):
    """float32 x for a tensor core, which drops the last 13 bits: what is left is x rounded to nearest. NaN stays NaN."""
    return (x.to(tl.int32, bitcast=True) + tl.where(x == x, 0x1000, 0)).to(tl.float32, bitcast=True)


@triton.jit
def weights(w, PRECISION: tl.constexpr):
    """w as the second operand of `dot`; for weights that stay in the kernel. launch.py rounds those that are read again."""
    if PRECISION == "tf32" and not INTERPRETED:
        w = to_tf32(w)
    return w


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. PRECISION: how float32 operands are multiplied, "ieee" or "tf32"; b went through `weights`."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        if PRECISION == "tf32":
            a = to_tf32(a)
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """float32 x rounded to DTYPE, to nearest even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        up = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, up.to(tl.uint32), bits).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def split_gates(z, BM: tl.constexpr, BN: tl.constexpr):
    """The four (BM, BN) gates of z (BM, 4 BN), whose columns are gate · BN + unit."""
    pair = tl.permute(tl.reshape(z, (BM, 2, 2, BN)), (0, 3, 1, 2))
    even, odd = tl.split(pair)
    i, g = tl.split(even)
    f, o = tl.split(odd)
    return i, f, g, o


@triton.jit
def join_gates(i, f, g, o, BM: tl.constexpr, BN: tl.constexpr):
    """The inverse of `split_gates`: (BM, 4 BN)."""
    pair = tl.join(tl.join(i, g), tl.join(f, o))
    return tl.reshape(tl.permute(pair, (0, 2, 3, 1)), (BM, 4 * BN))


@triton.jit
def tile_steps(starts_ptr, T, first_row):
    """How many steps the batch tile that begins at `first_row` takes part in. starts_ptr: (T + 1,) or None when dense."""
    if starts_ptr is None:
        return T
    else:
        steps = 0
        for t0 in tl.range(0, T, 1024):
            t = t0 + tl.arange(0, 1024)
            inside = t < T
            start = tl.load(starts_ptr + t, mask=inside, other=0)
            end = tl.load(starts_ptr + t + 1, mask=inside, other=0)
            steps += tl.sum((end - start > first_row).to(tl.int32))
        return steps


@triton.jit
def step_rows(starts_ptr, s, steps, B, reverse):
    """First row and number of rows of the s-th processed step of `steps`; rows of a step beyond them: 0."""
    t = tl.where(reverse != 0, steps - 1 - s, s)
    if starts_ptr is None:
        return t * B.to(tl.int64), tl.where((s >= 0) & (s < steps), B, 0)
    else:
        inside = (s >= 0) & (s < steps)
        start = tl.load(starts_ptr + t, mask=inside, other=0)
        end = tl.load(starts_ptr + t + 1, mask=inside, other=0)
        return start, (end - start).to(tl.int32)
