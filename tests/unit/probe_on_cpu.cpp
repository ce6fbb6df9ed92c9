// probe.cu on the CPU, for tests: what CUDA gives a kernel, as far as these need it. The source is
// included as PROBE, after each PTX instruction in it was made a call (test_verify.py). Kernels run
// thread by thread; those of a block with a barrier take turns there.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <ucontext.h>

struct Index { unsigned x; };
static Index threadIdx, blockIdx, blockDim, gridDim;
static uint32_t dynamic[12288];
static ucontext_t scheduler, contexts[256];
static char stacks[256][32768];
static bool ended[256];

#define __global__
#define __device__ static
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(threads)

struct uint4 { unsigned x, y, z, w; };
struct float4 { float x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static void __syncthreads() { swapcontext(&contexts[threadIdx.x], &scheduler); }

// One thread at a time: what is between two barriers is never interrupted.
#define ATOMIC(name, change)                             \
  template <class T> static T name(T *to, T value) {     \
    T old = *to;                                         \
    change return old;                                   \
  }
ATOMIC(atomicAdd, *to = old + value;)
ATOMIC(atomicMax, if (value > old) *to = value;)
ATOMIC(atomicMin, if (value < old) *to = value;)
ATOMIC(atomicXor, *to = old ^ value;)
ATOMIC(atomicOr, *to = old | value;)
template <class T, class U> static T atomicCAS(T *to, T was, U value) {
  T old = *to;
  if (old == was) *to = (T)value;
  return old;
}

template <class A, class B> static A bits(B from) { A to; memcpy(&to, &from, sizeof to); return to; }
static double __longlong_as_double(long long v) { return bits<double>(v); }
static long long __double_as_longlong(double v) { return bits<long long>(v); }
static float __uint_as_float(unsigned v) { return bits<float>(v); }

static float __fadd_rn(float a, float b) { return a + b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fsqrt_rn(float a) { return sqrtf(a); }
static float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static double __dmul_rn(double a, double b) { return a * b; }
static double __dadd_rn(double a, double b) { return a + b; }
static double __ddiv_rn(double a, double b) { return a / b; }
static double __dsqrt_rn(double a) { return sqrt(a); }
static double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// PTX, from the stand-in's own functions and anew
extern "C" float widen_on_cpu(uint16_t half);
extern "C" uint16_t narrow_on_cpu(double wide);
static float ptx_cvt_f32_f16(uint16_t half) { return widen_on_cpu(half); }
static uint16_t ptx_cvt_rn_f16_f32(float wide) { return narrow_on_cpu(wide); }
static uint32_t ptx_fma_rn_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int at = 0; at < 32; at += 16)
    result |= (uint32_t)narrow_on_cpu((double)widen_on_cpu(a >> at) * widen_on_cpu(b >> at) +
                                      widen_on_cpu(c >> at)) << at;
  return result;
}
static int ptx_dp4a_s32_s32(uint32_t a, uint32_t b, int c) {
  const int8_t *x = (const int8_t *)&a, *y = (const int8_t *)&b;
  return (int)((uint32_t)c + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]);
}
static uint32_t ptx_dp4a_u32_u32(uint32_t a, uint32_t b, uint32_t c) {
  const uint8_t *x = (const uint8_t *)&a, *y = (const uint8_t *)&b;
  return c + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3];
}
static uint64_t ptx_mov_u64() { static uint64_t now; return now += 1000; }

#include PROBE

// ---- a launch: parameters are addresses, as cuLaunchKernel gets them ----

template <int... Numbers> struct Numbers_ {};
template <int Count, int... Rest> struct Upto : Upto<Count - 1, Count - 1, Rest...> {};
template <int... Rest> struct Upto<0, Rest...> { typedef Numbers_<Rest...> type; };
template <class... Types, int... N>
static void call(void (*kernel)(Types...), void **arguments, Numbers_<N...>) {
  kernel(*(typename std::remove_const<Types>::type *)arguments[N]...);
}
template <class... Types> static void call(void (*kernel)(Types...), void **arguments) {
  call(kernel, arguments, typename Upto<sizeof...(Types)>::type());
}

static void (*chosen)(void **);
static void **given;
static void run_one() {
  chosen(given);
  ended[threadIdx.x] = true;
  swapcontext(&contexts[threadIdx.x], &scheduler);
}

#define KERNEL_NAMED(name) \
  if (!strcmp(which, #name)) chosen = [](void **arguments) { call(&name, arguments); };

// A walk through shared memory meets every word once, and with 32 always the same bank.
static bool walks() {
  for (u32 step : {1u, 2u, 3u, 32u, 96u}) {
    static bool seen[SHARED_WORDS];
    memset(seen, 0, sizeof seen);
    for (u32 k = 0; k < SHARED_WORDS; k++) seen[place(k, step)] = true;
    for (bool one : seen)
      if (!one) return false;
  }
  for (u32 k = 0; k < 32; k++)
    if (place(k, 32) % 32 || place(k, 1) % 32 != k) return false;
  return true;
}

extern "C" bool probe_on_cpu(const char *which, unsigned blocks, unsigned threads, void **arguments) {
  chosen = nullptr;
  KERNELS
  if (!chosen || !walks()) return false;
  bool turns = !strcmp(which, "atomics") || !strcmp(which, "shared_memory");
  given = arguments;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
    if (!turns) {
      for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) chosen(arguments);
      continue;
    }
    for (unsigned n = 0; n < threads; n++) {
      ended[n] = false;
      getcontext(&contexts[n]);
      contexts[n].uc_stack.ss_sp = stacks[n];
      contexts[n].uc_stack.ss_size = sizeof stacks[n];
      makecontext(&contexts[n], run_one, 0);
    }
    for (bool working = true; working;) {
      working = false;
      for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
        if (!ended[threadIdx.x]) {
          swapcontext(&scheduler, &contexts[threadIdx.x]);
          working = true;
        }
    }
  }
  return true;
}
