"""Loads, stores, arithmetic and control flow, one program a block of elements."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .spec import VERSION, Corpus

corpus = Corpus()
BLOCK = {"BLOCK": 1024}


@triton.jit
def add(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    y = tl.load(y_ptr + at, mask=inside, other=0)
    tl.store(out_ptr + at, x + y, mask=inside)


for _kind in ("fp32", "fp16", "bf16", "i32", "i8", "fp64"):
    _types = f"*{_kind} *{_kind} *{_kind} i32"
    corpus.add(f"add_{_kind}", add, _types, BLOCK, "elementwise", multiples="n")
corpus.add(
    "add_fp16_unaligned",
    add,
    "*fp16 *fp16 *fp16 i32",
    BLOCK,
    "elementwise",
    unaligned="x_ptr y_ptr out_ptr",
)


@triton.jit
def arithmetic(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Every arithmetic operator and comparison in the argument's own type."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    y = tl.load(y_ptr + at, mask=inside, other=1.0)
    total = x * y + x - y
    total = tl.where(x > y, total * x, total - y * 2)
    total += tl.maximum(x, y) - tl.minimum(x, total)
    total = tl.where((x <= y) & (total != x), -total, tl.abs(total))
    total = (total / (tl.abs(y) + 1)).to(x.dtype)
    tl.store(out_ptr + at, total, mask=inside)


for _kind in ("fp16", "bf16", "fp32"):
    corpus.add(
        f"arithmetic_{_kind}", arithmetic, f"*{_kind} *{_kind} *{_kind} i32", BLOCK, "elementwise"
    )


@triton.jit
def fused_multiply_add(x_ptr, y_ptr, z_ptr, out_ptr, n, low, high, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside)
    y = tl.load(y_ptr + at, mask=inside)
    z = tl.load(z_ptr + at, mask=inside)
    result = tl.fma(x, y, z)
    result = tl.clamp(result, low.to(result.dtype), high.to(result.dtype))
    result = tl.maximum(result, z, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + at, result, mask=inside)


for _kind in ("fp16", "fp32", "bf16", "fp64"):
    corpus.add(
        f"fma_clamp_{_kind}",
        fused_multiply_add,
        f"*{_kind} *{_kind} *{_kind} *{_kind} i32 fp32 fp32",
        BLOCK,
        "elementwise",
    )


@triton.jit
def eviction_hints(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0, eviction_policy="evict_last")
    y = tl.load(y_ptr + at, mask=inside, eviction_policy="evict_first")
    z = tl.load(y_ptr + at + n, eviction_policy="evict_last")
    tl.store(out_ptr + at, x + y, mask=inside, eviction_policy="evict_first")
    tl.store(out_ptr + at + n, x + z, eviction_policy="evict_last")
    tl.store(out_ptr + 2 * n, tl.load(x_ptr, eviction_policy="evict_last"))


for _kind in ("fp32", "fp16", "i8", "i64"):
    corpus.add(
        f"eviction_{_kind}",
        eviction_hints,
        f"*{_kind} *{_kind} *{_kind} i32",
        BLOCK,
        "hints",
        multiples="n" if _kind != "i64" else "",
    )


@triton.jit
def cache_modifiers(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, cache_modifier=".ca")
    x += tl.load(x_ptr + at + n, mask=inside, other=0, cache_modifier=".cg")
    x += tl.load(x_ptr + at + 2 * n, mask=inside, other=1, cache_modifier=".cv")
    tl.store(out_ptr + at, x, mask=inside, cache_modifier=".wb")
    tl.store(out_ptr + at + n, x, mask=inside, cache_modifier=".cg")
    tl.store(out_ptr + at + 2 * n, x, mask=inside, cache_modifier=".cs")
    tl.store(out_ptr + at + 3 * n, x, cache_modifier=".wt")


corpus.add("cache_modifiers_fp32", cache_modifiers, "*fp32 *fp32 i32", BLOCK, "hints")
corpus.add(
    "cache_modifiers_fp16", cache_modifiers, "*fp16 *fp16 i32", BLOCK, "hints", multiples="n"
)


@triton.jit
def volatile_loads(x_ptr, flag_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    first = tl.load(x_ptr + at, mask=inside, other=0, volatile=True)
    tl.debug_barrier()
    second = tl.load(x_ptr + at, mask=inside, other=0, volatile=True)
    flag = tl.load(flag_ptr, volatile=True)
    tl.store(out_ptr + at, tl.where(flag != 0, first + second, first), mask=inside)


corpus.add("volatile_loads", volatile_loads, "*fp32 *i32 *fp32 i32", BLOCK, "hints")


@triton.jit
def activations(x_ptr, gate_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """gelu (tanh and erf), silu, swiglu, softplus and mish, one after the other."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    gelu_tanh = 0.5 * x * (1 + libdevice.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))
    tl.store(out_ptr + at, gelu_tanh.to(kind), mask=inside)
    gelu_erf = 0.5 * x * (1 + tl.erf(x * 0.7071067812))
    tl.store(out_ptr + n + at, gelu_erf.to(kind), mask=inside)
    silu = x * tl.sigmoid(x)
    tl.store(out_ptr + 2 * n + at, silu.to(kind), mask=inside)
    tl.store(out_ptr + 3 * n + at, (silu * gate).to(kind), mask=inside)
    softplus = tl.where(x > 20.0, x, libdevice.log1p(tl.exp(x)))
    tl.store(out_ptr + 4 * n + at, softplus.to(kind), mask=inside)
    tl.store(out_ptr + 5 * n + at, (x * libdevice.tanh(softplus)).to(kind), mask=inside)


for _kind in ("fp32", "fp16", "bf16"):
    corpus.add(
        f"activations_{_kind}",
        activations,
        f"*{_kind} *{_kind} *{_kind} i32",
        BLOCK,
        "elementwise",
        multiples="n",
    )


@triton.jit
def swiglu_backward(grad_ptr, x_ptr, gate_ptr, dx_ptr, dgate_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * columns
    at = tl.arange(0, BLOCK)
    inside = at < columns
    grad = tl.load(grad_ptr + row + at, mask=inside, other=0)
    x = tl.load(x_ptr + row + at, mask=inside, other=0).to(tl.float32)
    gate = tl.load(gate_ptr + row + at, mask=inside, other=0)
    sigmoid = tl.sigmoid(x)
    silu = x * sigmoid
    tl.store(dgate_ptr + row + at, grad * silu, mask=inside)
    tl.store(dx_ptr + row + at, grad * (silu * (1 - sigmoid) + sigmoid) * gate, mask=inside)


corpus.add(
    "swiglu_backward", swiglu_backward, "*fp16 *fp16 *fp16 *fp16 *fp16 i32", BLOCK, "elementwise"
)


@triton.jit
def math_functions(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Triton's own mathematics."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    y = tl.load(y_ptr + at, mask=inside, other=1.0)
    positive = tl.abs(x) + 0.5
    total = tl.exp(x) + tl.exp2(y) + tl.log(positive) + tl.log2(positive)
    total += tl.sin(x) * tl.cos(y) + tl.sqrt(positive) - tl.rsqrt(positive)
    total += tl.sqrt_rn(positive) + tl.div_rn(x, positive) + tl.fdiv(y, positive)
    total += tl.floor(x) - tl.ceil(y) + tl.erf(x) + tl.sigmoid(y)
    tl.store(out_ptr + at, total, mask=inside)


corpus.add("math_fp32", math_functions, "*fp32 *fp32 *fp32 i32", BLOCK, "elementwise math")


@triton.jit
def math_functions_fp64(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    y = tl.load(y_ptr + at, mask=inside, other=1.0)
    positive = tl.abs(x) + 0.5
    total = tl.exp(x) + tl.log(positive) + tl.sqrt(positive) + tl.erf(y) + tl.sin(x)
    total += libdevice.pow(positive, y) + libdevice.tanh(y) + tl.floor(x) + x / positive
    tl.store(out_ptr + at, total, mask=inside)


corpus.add("math_fp64", math_functions_fp64, "*fp64 *fp64 *fp64 i32", {"BLOCK": 256}, "math")


@triton.jit
def libdevice_exponential(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    y = tl.load(y_ptr + at, mask=inside, other=1.0)
    positive = libdevice.abs(x) + 0.5
    total = libdevice.exp(x) + libdevice.exp2(y) + libdevice.exp10(y) + libdevice.expm1(x)
    total += libdevice.log(positive) + libdevice.log2(positive) + libdevice.log10(positive)
    total += libdevice.log1p(positive) + libdevice.pow(positive, y) + libdevice.cbrt(x)
    total += libdevice.erf(x) + libdevice.erfc(y) + libdevice.erfinv(x * 0.01)
    total += libdevice.lgamma(positive) + libdevice.tgamma(positive) + libdevice.hypot(x, y)
    total += libdevice.fast_expf(x) + libdevice.fast_logf(positive) + libdevice.fast_powf(x, y)
    tl.store(out_ptr + at, total, mask=inside)


@triton.jit
def libdevice_trigonometry(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    y = tl.load(y_ptr + at, mask=inside, other=1.0)
    small = x / (libdevice.abs(x) + 1.0)
    total = libdevice.sin(x) + libdevice.cos(y) + libdevice.tan(x) + libdevice.sinpi(x)
    total += libdevice.asin(small) + libdevice.acos(small) + libdevice.atan(y)
    total += libdevice.atan2(x, y) + libdevice.sinh(x) + libdevice.cosh(y) + libdevice.tanh(x)
    total += libdevice.asinh(x) + libdevice.acosh(libdevice.abs(y) + 1) + libdevice.atanh(small)
    total += libdevice.fast_sinf(x) + libdevice.fast_cosf(y)
    tl.store(out_ptr + at, total, mask=inside)


@triton.jit
def libdevice_rounding(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    y = tl.load(y_ptr + at, mask=inside, other=1.0)
    total = libdevice.rint(x) + libdevice.nearbyint(y) + libdevice.round(x) + libdevice.trunc(y)
    total += libdevice.floor(x) + libdevice.ceil(y) + libdevice.fmod(x, y)
    total += libdevice.copysign(x, y) + libdevice.nextafter(x, y) + libdevice.fdim(x, y)
    total += libdevice.remainder(x, y) + libdevice.rsqrt(libdevice.abs(x) + 0.5)
    total += libdevice.div_rz(x, libdevice.abs(y) + 1.0) + libdevice.fma(x, y, total)
    total += libdevice.llrint(x).to(tl.float32) + libdevice.float2int_rn(y).to(tl.float32)
    strange = (libdevice.isnan(x) != 0) | (libdevice.isinf(y) != 0) | (libdevice.signbit(x) != 0)
    tl.store(out_ptr + at, tl.where(strange, 0.0, total), mask=inside)


for _function in (libdevice_exponential, libdevice_trigonometry, libdevice_rounding):
    corpus.add(
        _function.__name__, _function, "*fp32 *fp32 *fp32 i32", {"BLOCK": 256}, "elementwise math"
    )


@triton.jit
def integers(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Division, remainder, shifts and bits, signed or not."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1)
    y = tl.load(y_ptr + at, mask=inside, other=1)
    divisor = (y | 1).to(x.dtype)
    total = x // divisor + x % divisor + x * y
    total = (total << 2) ^ (x >> 1) | (y & 15)
    total += tl.maximum(x, y) - tl.minimum(x, y) + tl.where(x < y, ~x, -y)
    total += tl.cdiv(x, 7).to(x.dtype)
    tl.store(out_ptr + at, total.to(x.dtype), mask=inside)


for _kind in ("i32", "u32", "i64", "u64", "i16", "i8", "u8"):
    corpus.add(
        f"integers_{_kind}", integers, f"*{_kind} *{_kind} *{_kind} i32", {"BLOCK": 256}, "integer"
    )


@triton.jit
def bit_tricks(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    total = libdevice.popc(x) + libdevice.clz(x) + libdevice.brev(x) + libdevice.ffs(x)
    total += libdevice.mulhi(x, x + 1) + libdevice.byte_perm(x, total, 0x3201)
    unsigned = x.to(tl.uint32, bitcast=True)
    total += tl.umulhi(unsigned, unsigned + 3).to(tl.int32, bitcast=True)
    tl.store(out_ptr + at, total, mask=inside)


corpus.add("bit_tricks", bit_tricks, "*i32 *i32 i32", {"BLOCK": 256}, "integer")


@triton.jit
def conversions(x_ptr, f16_ptr, b16_ptr, f64_ptr, i32_ptr, i8_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    half = x.to(tl.float16)
    tl.store(f16_ptr + at, half, mask=inside)
    tl.store(f16_ptr + n + at, x.to(tl.float16, fp_downcast_rounding="rtz"), mask=inside)
    brain = x.to(tl.bfloat16)
    tl.store(b16_ptr + at, brain, mask=inside)
    tl.store(b16_ptr + n + at, half.to(tl.bfloat16), mask=inside)
    tl.store(f64_ptr + at, brain.to(tl.float64) + half.to(tl.float64), mask=inside)
    tl.store(i32_ptr + at, half.to(tl.int32) + brain.to(tl.int32) + x.to(tl.int32), mask=inside)
    tl.store(i8_ptr + at, x.to(tl.int8) + (x > 0).to(tl.int8), mask=inside)
    small = tl.load(i8_ptr + n + at, mask=inside, other=0)
    total = small.to(tl.float16) + small.to(tl.uint8, bitcast=True).to(tl.bfloat16)
    tl.store(f16_ptr + 2 * n + at, total, mask=inside)


corpus.add(
    "conversions",
    conversions,
    "*fp32 *fp16 *bf16 *fp64 *i32 *i8 i32",
    {"BLOCK": 512},
    "elementwise convert",
    multiples="n",
)


@triton.jit
def bitcasts(x_ptr, half_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    bits = x.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, ~bits, bits ^ -2147483648)
    half = tl.load(half_ptr + at, mask=inside, other=0.0).to(tl.uint16, bitcast=True)
    brain = (half ^ 0x8000).to(tl.bfloat16, bitcast=True).to(tl.float32)
    tl.store(out_ptr + at, order + brain.to(tl.int32, bitcast=True), mask=inside)


corpus.add("bitcasts", bitcasts, "*fp32 *fp16 *i32 i32", BLOCK, "elementwise convert")


@triton.jit
def through_fp8(x_ptr, small_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """To an 8-bit float and back, both by way of memory and in registers."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    kind: tl.constexpr = small_ptr.dtype.element_ty
    tl.store(small_ptr + at, x.to(kind), mask=inside)
    before = tl.load(small_ptr + n + at, mask=inside).to(x.dtype)
    tl.store(out_ptr + at, before + x.to(kind).to(x.dtype), mask=inside)


for _kind in ("fp16", "fp32", "bf16"):
    corpus.add(
        f"through_fp8e5_{_kind}",
        through_fp8,
        f"*{_kind} *fp8e5 *{_kind} i32",
        BLOCK,
        "convert fp8",
        multiples="n",
    )
corpus.add(
    "through_fp8e4nv",
    through_fp8,
    "*fp16 *fp8e4nv *fp16 i32",
    BLOCK,
    "convert fp8 fp8e4nv",
    multiples="n",
    proof=(8, 9),
)
corpus.add(
    "through_fp8e4b15",
    through_fp8,
    "*fp16 *fp8e4b15 *fp16 i32",
    BLOCK,
    "convert fp8",
    multiples="n",
)


@triton.jit
def wide_offsets(x_ptr, out_ptr, rows, columns, stride, BLOCK: tl.constexpr):
    """Offsets beyond 32 bits: a strided copy of a matrix of more than 2**31 elements."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = (at < columns) & (row < rows)
        x = tl.load(x_ptr + row * stride + at * rows, mask=inside, other=0)
        tl.store(out_ptr + at * stride + row, x, mask=inside)


corpus.add("wide_offsets", wide_offsets, "*fp16 *fp16 i64 i64 i64", {"BLOCK": 256}, "integer")


@triton.jit
def random_numbers(out_ptr, int_ptr, n, seed, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    tl.store(out_ptr + at, tl.rand(seed, at), mask=inside)
    tl.store(out_ptr + n + at, tl.randn(seed, at), mask=inside)
    tl.store(int_ptr + at, tl.randint(seed, at), mask=inside)
    a, b, c, d = tl.randint4x(seed, at, n_rounds=7)
    tl.store(int_ptr + n + at, a ^ b ^ c ^ d, mask=inside)
    e, f, g, h = tl.rand4x(seed + 1, at)
    tl.store(out_ptr + 2 * n + at, e + f + g + h, mask=inside)


corpus.add("random_i32", random_numbers, "*fp32 *i32 i32 i32", {"BLOCK": 256}, "random")
corpus.add("random_i64_seed", random_numbers, "*fp32 *i32 i32 i64", {"BLOCK": 256}, "random")


@triton.jit
def dropout(x_ptr, out_ptr, n, seed, keep, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    kept = tl.rand(seed, at) < keep
    tl.store(out_ptr + at, tl.where(kept, x / keep, 0.0), mask=inside)


corpus.add("dropout_fp32", dropout, "*fp32 *fp32 i32 i32 fp32", BLOCK, "random")
corpus.add("dropout_fp16", dropout, "*fp16 *fp16 i32 i32 fp32", BLOCK, "random")


@triton.jit
def printing(x_ptr, half_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0)
    half = tl.load(half_ptr + at, mask=at < n, other=0)
    tl.device_print("x", x)
    tl.device_print("in hexadecimal", x + 1, hex=True)
    tl.device_print("half and program", half, tl.program_id(0))


corpus.add("device_print", printing, "*i32 *fp16 i32", {"BLOCK": 128}, "debug")


@triton.jit
def asserting(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    tl.device_assert((x >= 0) | (at >= n), "negative")
    tl.device_assert(n > 0, "empty")
    tl.store(out_ptr + at, x + 1, mask=inside)


corpus.add("device_assert", asserting, "*i32 *i32 i32", BLOCK, "debug", debug=True)


@triton.jit
def inline_assembly(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    y = tl.load(y_ptr + at, mask=inside, other=0)
    rotated = tl.inline_asm_elementwise(
        "shf.l.wrap.b32 $0, $1, $1, 7;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
    )
    low, high = tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.lt.s32 p, $2, $3; selp.b32 $0, $2, $3, p; selp.b32 $1, $3, $2, p; }",
        "=r,=r,r,r",
        [x, y],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )
    tl.store(out_ptr + at, rotated ^ (high - low), mask=inside)


corpus.add("inline_assembly", inline_assembly, "*i32 *i32 *i32 i32", BLOCK, "inline-asm")


@triton.jit
def inline_assembly_packed(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Four bytes in one register."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    flipped = tl.inline_asm_elementwise(
        "xor.b32 $0, $1, 0x80808080;", "=r,r", [x], dtype=tl.int8, is_pure=True, pack=4
    )
    tl.store(out_ptr + at, flipped, mask=inside)


corpus.add(
    "inline_assembly_packed",
    inline_assembly_packed,
    "*i8 *i8 i32",
    BLOCK,
    "inline-asm",
    multiples="n",
)


@triton.jit
def inline_tanh(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """An instruction of 7.5 and newer, as attention with a cap on its scores likes to use."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    y = tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )
    tl.store(out_ptr + at, y, mask=inside)


corpus.add("inline_tanh", inline_tanh, "*fp32 *fp32 i32", BLOCK, "inline-asm")
# Triton 3.3 asks LLVM for a cluster's registers at any capability, and LLVM ends the process
corpus.add(
    "add_in_clusters",
    add,
    "*fp32 *fp32 *fp32 i32",
    BLOCK,
    "elementwise",
    oldest=(3, 5),
    proof=(9, 0),
    num_ctas=2,
)


@triton.jit
def pack_int4(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Two signed 4-bit numbers into one byte."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    even = tl.load(x_ptr + 2 * at, mask=inside, other=0)
    odd = tl.load(x_ptr + 2 * at + 1, mask=inside, other=0)
    tl.store(out_ptr + at, (even & 15) | (odd << 4), mask=inside)


@triton.jit
def unpack_int4(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    packed = tl.load(x_ptr + at, mask=at < n, other=0)
    low = (packed << 4).to(tl.int8) >> 4
    high = packed >> 4
    both = tl.interleave(low, high)
    to = tl.program_id(0) * 2 * BLOCK + tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + to, both.to(tl.float16), mask=to < 2 * n)


corpus.add("pack_int4", pack_int4, "*i8 *i8 i32", BLOCK, "integer")
corpus.add("unpack_int4", unpack_int4, "*i8 *fp16 i32", BLOCK, "integer")


@triton.jit
def booleans(x_ptr, keep_ptr, out_ptr, flag_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    keep = tl.load(keep_ptr + at, mask=inside, other=0)
    chosen = keep & (x > 0) | (x == -1)
    tl.store(flag_ptr + at, chosen, mask=inside)
    tl.store(out_ptr + at, tl.where(chosen & (x != 3), x, float("-inf")), mask=inside)


corpus.add("booleans", booleans, "*fp32 *i1 *fp32 *i1 i32", BLOCK, "elementwise")


@triton.jit
def collatz(x_ptr, out_ptr, limit):
    """A while loop with a condition that only the data know, and an early return."""
    at = tl.program_id(0)
    x = tl.load(x_ptr + at)
    if x <= 0:
        tl.store(out_ptr + at, -1)
        return
    steps = 0
    while (x != 1) & (steps < limit):
        if x % 2 == 0:  # noqa: SIM108  # Triton's branch, not Python's
            x = x // 2
        else:
            x = 3 * x + 1
        steps += 1
    tl.store(out_ptr + at, steps)


corpus.add("collatz", collatz, "*i32 *i32 i32", {}, "control")


@triton.jit
def while_block(x_ptr, out_ptr, n, tolerance, BLOCK: tl.constexpr):
    """Newton's square root of a block, until every element is good enough."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=1.0)
    root = x * 0.5 + 0.5
    error = tl.max(tl.abs(root * root - x), axis=0)
    while error > tolerance:
        root = 0.5 * (root + x / root)
        error = tl.max(tl.abs(root * root - x), axis=0)
    tl.store(out_ptr + at, root, mask=at < n)


corpus.add("while_block", while_block, "*fp32 *fp32 i32 fp32", {"BLOCK": 256}, "control")


@triton.jit(noinline=True)
def _polynomial(x, scale):
    return (x * scale + 1.0) * x - 2.0


@triton.jit(noinline=True)
def _row_sum(x_ptr, row, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    return tl.sum(tl.load(x_ptr + row * n + at, mask=at < n, other=0.0), axis=0)


@triton.jit
def device_functions(x_ptr, out_ptr, n, scale, BLOCK: tl.constexpr):
    """Calls that stay calls: of numbers, and one that uses shared memory itself."""
    row = tl.program_id(0)
    total = _row_sum(x_ptr, row, n, BLOCK) + _row_sum(x_ptr, row + 1, n, BLOCK)
    once = _polynomial(total, scale)
    tl.store(out_ptr + row, _polynomial(once, scale))


corpus.add("device_functions", device_functions, "*fp32 *fp32 i32 fp32", {"BLOCK": 256}, "control")


@triton.jit
def static_loops(x_ptr, out_ptr, n, BLOCK: tl.constexpr, TAPS: tl.constexpr):
    """A moving average, unrolled, then a loop that the compiler may unroll by two."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for tap in tl.static_range(TAPS):
        total += tl.load(x_ptr + at + tap, mask=at + tap < n, other=0.0)
    for step in tl.range(0, n, BLOCK, loop_unroll_factor=2):
        total += tl.load(x_ptr + step + tl.arange(0, BLOCK), mask=step + at < n, other=0.0)
    tl.store(out_ptr + at, total / TAPS, mask=at < n)


corpus.add("static_loops", static_loops, "*fp16 *fp16 i32", {"BLOCK": 256, "TAPS": 5}, "control")


@triton.jit
def const_pointers(x_ptr: tl.const, out_ptr, count_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    count = tl.load(count_ptr)
    tl.assume(count > 0)
    for start in range(0, count, BLOCK):
        inside = start + at < count
        tl.store(out_ptr + start + at, tl.load(x_ptr + start + at, mask=inside), mask=inside)


corpus.add("const_pointers", const_pointers, "*kfp32 *fp32 *i32", BLOCK, "control")


if VERSION >= (3, 5):

    @triton.jit
    def _compare(a, b):
        if a < b:
            return -1
        elif a > b:
            return 1
        else:
            return 0

    @triton.jit
    def mapped(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        x = tl.load(x_ptr + at, mask=inside, other=0)
        y = tl.load(y_ptr + at, mask=inside, other=0)
        tl.store(out_ptr + at, tl.map_elementwise(_compare, x, y), mask=inside)

    corpus.add(
        "map_elementwise",
        mapped,
        "*fp32 *fp32 *i32 i32",
        {"BLOCK": 256},
        "elementwise",
        oldest=(3, 5),
    )
