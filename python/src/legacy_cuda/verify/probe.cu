// The kernels of `legacy-cuda verify`. No header is included: nvcc and NVRTC compile the same text,
// for every capability from 3.5 on. Halves are bits in integers, and what has no operator of C++
// without headers is PTX. Each kernel's grid may be of any size unless it says otherwise.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void __launch_bounds__(256)

__device__ __forceinline__ u32 first() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u32 stride() { return gridDim.x * blockDim.x; }

// ---- arithmetic: out[n * operation + i], each operation rounded once ----

// add, multiply, divide, square root of |a|, and the exact error of the product by one fma
KERNEL arithmetic_fp32(const float *a, const float *b, float *out, u32 n) {
  for (u32 i = first(); i < n; i += stride()) {
    float product = __fmul_rn(a[i], b[i]);
    out[i] = __fadd_rn(a[i], b[i]);
    out[n + i] = product;
    out[2 * n + i] = __fdiv_rn(a[i], b[i]);
    out[3 * n + i] = __fsqrt_rn(fabsf(a[i]));
    out[4 * n + i] = __fmaf_rn(a[i], b[i], -product);
  }
}

KERNEL arithmetic_fp64(const double *a, const double *b, double *out, u32 n) {
  for (u32 i = first(); i < n; i += stride()) {
    double product = __dmul_rn(a[i], b[i]);
    out[i] = __dadd_rn(a[i], b[i]);
    out[n + i] = product;
    out[2 * n + i] = __ddiv_rn(a[i], b[i]);
    out[3 * n + i] = __dsqrt_rn(fabs(a[i]));
    out[4 * n + i] = __fma_rn(a[i], b[i], -product);
  }
}

__device__ __forceinline__ float widen(u16 half) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(half));
  return wide;
}

__device__ __forceinline__ u16 narrow(float wide) {
  u16 half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(wide));
  return half;
}

// fp16 as a storage format: no arithmetic in halves
KERNEL storage_fp16(const u16 *halves, float *wide, u32 n, const float *floats, u16 *narrowed,
                    u32 m) {
  for (u32 i = first(); i < n; i += stride()) wide[i] = widen(halves[i]);
  for (u32 i = first(); i < m; i += stride()) narrowed[i] = narrow(floats[i]);
}

#if __CUDA_ARCH__ >= 530
#define HALF_ARITHMETIC 1
__device__ __forceinline__ u32 half2_fma(u32 a, u32 b, u32 c) {
  u32 result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
#else
#define HALF_ARITHMETIC 0
// In fp32, rounded once more: the same halves where the sum is exact in fp32.
__device__ __forceinline__ u32 half2_fma(u32 a, u32 b, u32 c) {
  u32 low = narrow(__fmaf_rn(widen((u16)a), widen((u16)b), widen((u16)c)));
  u32 high = narrow(__fmaf_rn(widen((u16)(a >> 16)), widen((u16)(b >> 16)), widen((u16)(c >> 16))));
  return low | high << 16;
}
#endif

// pairs of halves: a * b + c
KERNEL arithmetic_fp16(const u32 *a, const u32 *b, const u32 *c, u32 *out, u32 n) {
  for (u32 i = first(); i < n; i += stride()) out[i] = half2_fma(a[i], b[i], c[i]);
}

#if __CUDA_ARCH__ >= 610
__device__ __forceinline__ int dot_signed(u32 a, u32 b, int c) {
  int result;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
__device__ __forceinline__ u32 dot_unsigned(u32 a, u32 b, u32 c) {
  u32 result;
  asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
#else
__device__ __forceinline__ int dot_signed(u32 a, u32 b, int c) {
  u32 sum = (u32)c;  // it wraps
  for (int at = 0; at < 32; at += 8)
    sum += (u32)((int)(signed char)(a >> at) * (int)(signed char)(b >> at));
  return (int)sum;
}
__device__ __forceinline__ u32 dot_unsigned(u32 a, u32 b, u32 c) {
  for (int at = 0; at < 32; at += 8) c += (a >> at & 255) * (b >> at & 255);
  return c;
}
#endif

// four products of bytes and an addend: signed, then unsigned
KERNEL dot_int8(const u32 *a, const u32 *b, const u32 *c, u32 *out, u32 n) {
  for (u32 i = first(); i < n; i += stride()) {
    out[i] = (u32)dot_signed(a[i], b[i], (int)c[i]);
    out[n + i] = dot_unsigned(a[i], b[i], c[i]);
  }
}

// ---- atomics ----

__device__ __forceinline__ void add_double(double *to, double value) {
#if __CUDA_ARCH__ >= 600
  atomicAdd(to, value);
#else
  u64 *bits = (u64 *)to, seen = *bits, before;
  do {
    before = seen;
    seen = atomicCAS(bits, before, __double_as_longlong(__longlong_as_double(before) + value));
  } while (seen != before);
#endif
}

// Thread i of all: `cells` of 8 bytes each, all 0 before but cell 5 (all ones):
// 0 u32 + 1, 1 u64 + (i << 20), 2 fp32 + 1, 3 fp64 + i, 4 max i, 5 min i, 6 xor i, 7 + 3 by CAS,
// 8 to 11 like 0 to 3, summed in shared memory first. tickets[old value of cell 0] counts up.
// Cells 3 and 7 are for one thread of a warp only: thousands that loop for one word take seconds.
KERNEL atomics(u64 *cells, u32 *tickets) {
  __shared__ u64 local[4];
  u32 i = first();
  if (threadIdx.x < 4) local[threadIdx.x] = 0;
  __syncthreads();
  u32 ticket = atomicAdd((u32 *)&cells[0], 1u);
  if (ticket < stride()) atomicAdd(&tickets[ticket], 1u);
  atomicAdd(&cells[1], (u64)i << 20);
  atomicAdd((float *)&cells[2], 1.0f);
  atomicMax((u32 *)&cells[4], i);
  atomicMin((u32 *)&cells[5], i);
  atomicXor((u32 *)&cells[6], i);
  if (threadIdx.x % 32 == 0) {
    add_double((double *)&cells[3], (double)i);
    u32 seen = *(volatile u32 *)&cells[7], before;
    do {
      before = seen;
      seen = atomicCAS((u32 *)&cells[7], before, before + 3);
    } while (seen != before);
  }
  atomicAdd((u32 *)&local[0], 1u);
  atomicAdd(&local[1], (u64)i << 20);
  atomicAdd((float *)&local[2], 1.0f);
  add_double((double *)&local[3], (double)i);
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd((u32 *)&cells[8], (u32)local[0]);
    atomicAdd(&cells[9], local[1]);
    atomicAdd((float *)&cells[10], __uint_as_float((u32)local[2]));
    add_double((double *)&cells[11], __longlong_as_double(local[3]));
  }
}

// ---- memory ----

enum { ADDRESS, ADDRESS_INVERTED, WALKING_ONE, WALKING_ZERO, CONSTANT };

// What word number `index` holds in a pattern. ADDRESS differs from word to word, so that an
// address line that is stuck shows; the walking bits pass every data line.
__device__ __forceinline__ u32 expected(u64 index, u32 pattern, u32 seed) {
  if (pattern == CONSTANT) return seed;
  if (pattern == WALKING_ONE) return 1u << ((u32)(index + seed) & 31);
  if (pattern == WALKING_ZERO) return ~(1u << ((u32)(index + seed) & 31));
  u32 mixed = ((u32)index ^ seed) * 0x9E3779B1u ^ (u32)(index >> 32) * 0x7FEB352Du;
  mixed ^= mixed >> 15;
  return pattern == ADDRESS ? mixed : ~mixed;
}

#define LISTED 8

// errors[0] counts, errors[1] collects the bits that were wrong, then up to LISTED pairs: the
// word's number; what it should be << 32 | what it is
__device__ __noinline__ void wrong(u64 *errors, u64 index, u32 should, u32 is) {
  u64 number = atomicAdd(&errors[0], 1ull);
  atomicOr((u32 *)&errors[1], should ^ is);
  if (number < LISTED) {
    errors[2 + 2 * number] = index;
    errors[3 + 2 * number] = (u64)should << 32 | is;
  }
}

// `quads` groups of four words, the first of which is number `base` of the whole test
KERNEL memory_write(uint4 *to, u64 quads, u64 base, u32 pattern, u32 seed) {
  for (u64 i = first(); i < quads; i += stride()) {
    u64 index = base + 4 * i;
    to[i] = make_uint4(expected(index, pattern, seed), expected(index + 1, pattern, seed),
                       expected(index + 2, pattern, seed), expected(index + 3, pattern, seed));
  }
}

KERNEL memory_check(const uint4 *from, u64 quads, u64 base, u32 pattern, u32 seed, u64 *errors) {
  for (u64 i = first(); i < quads; i += stride()) {
    uint4 is = from[i];
    u64 index = base + 4 * i;
    u32 should[4];
    for (int k = 0; k < 4; k++) should[k] = expected(index + k, pattern, seed);
    if (is.x != should[0]) wrong(errors, index, should[0], is.x);
    if (is.y != should[1]) wrong(errors, index + 1, should[1], is.y);
    if (is.z != should[2]) wrong(errors, index + 2, should[2], is.z);
    if (is.w != should[3]) wrong(errors, index + 3, should[3], is.w);
  }
}

#define SHARED_WORDS 12288u  // 48 KiB, what a block may have on every capability

// Word number k of a walk through shared memory in steps of `step` words: with 32, the threads of
// a warp all meet the same bank. `step` divides SHARED_WORDS.
__device__ __forceinline__ u32 place(u32 k, u32 step) {
  u32 columns = SHARED_WORDS / step;
  return k % columns * step + k / columns;
}

// 48 KiB of dynamic shared memory; each value and its complement, written and read in other steps
KERNEL shared_memory(u64 *errors, u32 seed) {
  extern __shared__ u32 words[];
  const u32 steps[] = {1, 2, 4, 8, 16, 32, 64, 3, 96, 1};
  for (int turn = 0; turn < 18; turn++) {
    u32 mask = turn & 1 ? ~0u : 0u, key = seed + blockIdx.x * 31 + turn / 2;
    for (u32 k = threadIdx.x; k < SHARED_WORDS; k += blockDim.x) {
      u32 at = place(k, steps[turn / 2]);
      words[at] = expected(at, ADDRESS, key) ^ mask;
    }
    __syncthreads();
    for (u32 k = threadIdx.x; k < SHARED_WORDS; k += blockDim.x) {
      u32 at = place(k, steps[turn / 2 + 1]), should = expected(at, ADDRESS, key) ^ mask;
      if (words[at] != should) wrong(errors, at, should, words[at]);
    }
    __syncthreads();
  }
}

// ---- rates ----

KERNEL copy(const uint4 *from, uint4 *to, u64 quads) {
  for (u64 i = first(); i < quads; i += stride()) to[i] = from[i];
}

KERNEL triad(const float4 *b, const float4 *c, float4 *a, u64 quads, float s) {
  for (u64 i = first(); i < quads; i += stride()) {
    float4 x = b[i], y = c[i];
    a[i] = make_float4(__fmaf_rn(s, y.x, x.x), __fmaf_rn(s, y.y, x.y), __fmaf_rn(s, y.z, x.z),
                       __fmaf_rn(s, y.w, x.w));
  }
}

__device__ __forceinline__ u64 nanoseconds() {
  u64 now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

__device__ __forceinline__ u64 cycles() {
  u64 now;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
  return now;
}

// A chain of x = x * a + c with a = -1 comes back to x after an even number of steps, and any
// error on the way is still there at the end: the rate is that of right results.
// report: 0 results that are wrong, 1 clock cycles and 2 nanoseconds that thread 0 took.
#define CHAINS 8
#define UNROLLED 16

#define RATE(name, type, parameter, start, step, good)                    \
  KERNEL name(u32 rounds, parameter a, parameter c, u64 *report) {        \
    type x[CHAINS];                                                       \
    for (u32 k = 0; k < CHAINS; k++) x[k] = start;                        \
    u64 clock = cycles(), time = nanoseconds();                           \
    for (u32 round = 0; round < rounds; round++) {                        \
      _Pragma("unroll") for (u32 turn = 0; turn < UNROLLED; turn++)       \
          _Pragma("unroll") for (u32 k = 0; k < CHAINS; k++) x[k] = step; \
    }                                                                     \
    u32 bad = 0;                                                          \
    for (u32 k = 0; k < CHAINS; k++) bad += !(good);                      \
    if (bad) atomicAdd(&report[0], (u64)bad);                             \
    if (first() == 0) {                                                   \
      report[1] = cycles() - clock;                                       \
      report[2] = nanoseconds() - time;                                   \
    }                                                                     \
  }

#define START ((threadIdx.x & 63) + k)

RATE(rate_fp32, float, float, (float)START, __fmaf_rn(x[k], a, c), x[k] == (float)START)
RATE(rate_fp64, double, double, (double)START, __fma_rn(x[k], a, c), x[k] == (double)START)
// pairs of halves: both START, which are exact
#define HALVES (narrow((float)START) * 0x10001u)
#if HALF_ARITHMETIC
RATE(rate_fp16, u32, u32, HALVES, half2_fma(x[k], a, c), x[k] == HALVES)
#endif
#if __CUDA_ARCH__ >= 610
// the sum of all dot products, which wraps
RATE(rate_dp4a, u32, u32, START, (u32)dot_signed(a, c, (int)x[k]),
     x[k] == START + rounds * UNROLLED * (u32)dot_signed(a, c, 0))
#endif

// `steps` (even) fused multiply-adds for each number that is read: arithmetic against memory
KERNEL intensity(const float4 *from, u64 quads, u32 steps, float a, float c, u64 *report) {
  u32 bad = 0;
  for (u64 i = first(); i < quads; i += stride()) {
    float4 x = from[i], y = x;
#pragma unroll 8
    for (u32 step = 0; step < steps; step++) {
      y.x = __fmaf_rn(y.x, a, c);
      y.y = __fmaf_rn(y.y, a, c);
      y.z = __fmaf_rn(y.z, a, c);
      y.w = __fmaf_rn(y.w, a, c);
    }
    bad += x.x != y.x || x.y != y.y || x.z != y.z || x.w != y.w;
  }
  if (bad) atomicAdd(&report[0], (u64)bad);
}
