/* A stand-in for libcuda.so.1, for tests: no GPU, not NVIDIA's. It answers questions about a made-up
   card, keeps "GPU memory" in the process, and for each kernel of probe.cu, known by its name, does
   on the CPU what the kernel's comment says, written anew; or, where probe_on_cpu.cpp is linked in,
   runs the kernel's own source. Time is counted, not spent: every launch
   and copy adds what its bytes and operations take at the rates of the card.

   STAND_IN_...  GPUS, NAME, CAPABILITY (61), MIB, FREE_MIB, PIECE_MIB (the most at once),
   MULTIPROCESSORS, CLOCK and LOAD_CLOCK (MHz), GB_S, TFLOPS, LINK (GB/s), FAULT: wrong:KERNEL,
   launch:KERNEL, hang:KERNEL, crash:KERNEL, stuck:WORD, address:BIT, link, peer, load, init:CODE.
   KERNEL may be cuInit for hang. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint32_t u32;
typedef uint64_t u64;

static const char *text(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}
static double number(const char *name, double otherwise) {
  const char *value = getenv(name);
  return value ? atof(value) : otherwise;
}
static const char *fault(const char *kind) {
  const char *set = text("STAND_IN_FAULT", "");
  size_t length = strlen(kind);
  return strncmp(set, kind, length) == 0 && (!set[length] || set[length] == ':')
             ? set + length + (set[length] == ':') : NULL;
}
static int hits(const char *kind, const char *name) {
  const char *which = fault(kind);
  return which && strcmp(which, name) == 0;
}

static int lost;       /* the error that every call answers with, once the context has ended */
static double now;     /* seconds */
static u32 *arena;     /* the memory of all GPUs */
static size_t size, taken;
static char last[256]; /* the last launch: some kernels are not run twice in a row */

#define ALIVE if (lost) return lost

static void settle(void) { /* a bit that is always set */
  const char *word = fault("stuck");
  if (word) arena[atoll(word)] |= 0x00100000;
}

int cuInit(u32 flags) {
  const char *code = fault("init");
  if (hits("hang", "cuInit")) for (;;) pause();
  printf("the driver says something\n17\n"); /* as libraries do; it is not the worker's answer */
  fflush(stdout);
  size = (size_t)number("STAND_IN_MIB", 32) << 20;
  arena = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return code ? atoi(code) : 0;
}
int cuGetErrorName(int code, const char **name) {
  *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 100 ? "CUDA_ERROR_NO_DEVICE"
        : code == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : code == 719 ? "CUDA_ERROR_LAUNCH_FAILED"
        : "CUDA_ERROR_UNKNOWN";
  return 0;
}
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = number("STAND_IN_GPUS", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int room, int device) {
  snprintf(name, room, "%s", text("STAND_IN_NAME", "Tesla P40 (stand-in)"));
  return 0;
}
int cuDeviceGetPCIBusId(char *bus, int room, int device) {
  snprintf(bus, room, "0000:%02X:00.0", 0x3B + device);
  return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  *bytes = (size_t)number("STAND_IN_TOTAL_MIB", 24451) << 20;
  return 0;
}
int cuDeviceGetAttribute(int *value, int question, int device) {
  int capability = number("STAND_IN_CAPABILITY", 61);
  switch (question) {
    case 13: *value = number("STAND_IN_CLOCK", 1531) * 1000; break;
    case 16: *value = number("STAND_IN_MULTIPROCESSORS", 30); break;
    case 32: *value = 1; break;
    case 36: *value = 3615000; break;
    case 37: *value = 384; break;
    case 38: *value = 65536; break;
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 87: *value = 32; break;
    default: *value = 0;
  }
  return 0;
}
int cuDeviceCanAccessPeer(int *can, int one, int other) { *can = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)(intptr_t)(device + 1);
  return 0;
}
int cuCtxSetCurrent(void *context) { ALIVE; return 0; }
int cuCtxEnablePeerAccess(void *context, u32 flags) { ALIVE; return 0; }
int cuCtxSynchronize(void) { ALIVE; return 0; }
int cuModuleLoadDataEx(void **module, const void *image, u32 count, int *options, void **values) {
  if (fault("load")) {
    strcpy(values[0], "no kernel image for the stand-in");
    return 209;
  }
  *module = (void *)1;
  return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  ALIVE;
  *function = strdup(name);
  return 0;
}
int cuMemGetInfo_v2(size_t *free_, size_t *total) {
  size_t most = (size_t)number("STAND_IN_FREE_MIB", size >> 20) << 20;
  *free_ = most > taken ? most - taken : 0;
  *total = size;
  return 0;
}
static struct { void *at; size_t bytes; } pieces[256];
int cuMemAlloc_v2(u64 *pointer, size_t bytes) {
  size_t room, total;
  ALIVE;
  cuMemGetInfo_v2(&room, &total);
  if (bytes > room || bytes > (size_t)number("STAND_IN_PIECE_MIB", 1 << 20) << 20) return 2;
  /* lowest place that is free: pieces are kept in the order of their addresses */
  char *at = (char *)arena;
  int n = 0;
  for (; pieces[n].at; n++) {
    if (at + bytes <= (char *)pieces[n].at) break;
    at = (char *)pieces[n].at + ((pieces[n].bytes + 255) & ~(size_t)255);
  }
  if (at + bytes > (char *)arena + size) return 2;
  memmove(pieces + n + 1, pieces + n, sizeof *pieces * (254 - n));
  pieces[n].at = at;
  pieces[n].bytes = bytes;
  taken += bytes;
  *pointer = (u64)(uintptr_t)at;
  return 0;
}
int cuMemFree_v2(u64 pointer) {
  ALIVE;
  for (int n = 0; pieces[n].at; n++)
    if (pieces[n].at == (void *)(uintptr_t)pointer) {
      taken -= pieces[n].bytes;
      memmove(pieces + n, pieces + n + 1, sizeof *pieces * (255 - n));
      return 0;
    }
  return 1;
}
static int move(void *to, const void *from, size_t bytes, double rate) {
  ALIVE;
  memcpy(to, from, bytes);
  now += bytes / (rate * 1e9);
  last[0] = 0;
  settle();
  return 0;
}
#define LINK number("STAND_IN_LINK", 12)
#define AT(pointer) ((void *)(uintptr_t)(pointer))
int cuMemcpyHtoD_v2(u64 to, const void *from, size_t n) { return move(AT(to), from, n, LINK); }
int cuMemcpyDtoH_v2(void *to, u64 from, size_t n) { return move(to, AT(from), n, LINK); }
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t n, void *stream) {
  return move(AT(to), from, n, LINK);
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t n, void *stream) {
  int code = move(to, AT(from), n, LINK);
  if (fault("link")) ((char *)to)[n / 2] ^= 4;
  return code;
}
int cuMemcpyPeerAsync(u64 to, void *a, u64 from, void *b, size_t n, void *stream) {
  int code = move(AT(to), AT(from), n, LINK);
  if (fault("peer")) ((char *)AT(to))[n / 3] ^= 1;
  return code;
}
int cuMemHostAlloc(void **pointer, size_t bytes, u32 flags) { *pointer = malloc(bytes); return 0; }
int cuMemFreeHost(void *pointer) { free(pointer); return 0; }
int cuEventCreate(void **event, u32 flags) { *event = calloc(1, sizeof(double)); return 0; }
int cuEventRecord(void *event, void *stream) { ALIVE; *(double *)event = now; return 0; }
int cuEventSynchronize(void *event) { ALIVE; return 0; }
int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
  *milliseconds = 1e3 * (*(double *)to - *(double *)from);
  return 0;
}

/* ---- the kernels ---- */

static float widen(uint16_t half) {
  int exponent = half >> 10 & 31, fraction = half & 1023;
  float value = exponent == 31 ? (fraction ? NAN : INFINITY)
              : exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
  return half & 0x8000 ? -value : value;
}
static uint16_t narrow(double value) { /* to nearest, ties to even */
  uint16_t sign = signbit(value) ? 0x8000 : 0;
  int exponent;
  value = fabs(value);
  if (value != value) return 0x7fff;
  frexp(value, &exponent);
  if (exponent < -13) exponent = -13;
  double unit = ldexp(1, exponent - 11), steps = nearbyint(value / unit);
  double rounded = steps * unit;
  if (rounded >= 65536) return sign | 0x7c00;
  if (rounded < ldexp(1, -14)) return sign | (uint16_t)(rounded / ldexp(1, -24));
  frexp(rounded, &exponent);
  return sign | (uint16_t)((exponent + 14) << 10) |
         ((uint16_t)ldexp(rounded, 11 - exponent) & 1023);
}
float widen_on_cpu(uint16_t half) { return widen(half); }
uint16_t narrow_on_cpu(double value) { return narrow(value); }
__attribute__((weak)) _Bool probe_on_cpu(const char *name, u32 blocks, u32 threads, void **list);

static u32 expected(u64 index, u32 pattern, u32 seed) {
  u32 low = index, high = index >> 32, mixed;
  switch (pattern) {
    case 4: return seed;
    case 2: return 1u << ((low + seed) % 32);
    case 3: return ~(1u << ((low + seed) % 32));
  }
  mixed = (low ^ seed) * 2654435761u ^ high * 2146118957u;
  mixed ^= mixed >> 15;
  return pattern ? ~mixed : mixed;
}
static void wrong(u64 *errors, u64 index, u32 should, u32 is) {
  u64 n = errors[0]++;
  errors[1] |= should ^ is;
  if (n < 8) { errors[2 + 2 * n] = index; errors[3 + 2 * n] = (u64)should << 32 | is; }
}

#define P(type, n) (*(type *)arguments[n])
#define POINTER(type, n) ((type *)AT(P(u64, n)))

static void compute(const char *name, u32 threads, void **arguments) {
  const char *line = fault("address");
  u64 mask = line ? ~((u64)1 << atoi(line)) : ~(u64)0;
  if (strncmp(name, "arithmetic_fp", 13) == 0 && name[13] != '1') {
    u32 n = P(u32, 3);
    for (u32 i = 0; i < n; i++)
      if (name[13] == '3') {
        float *a = POINTER(float, 0), *b = POINTER(float, 1), *out = POINTER(float, 2);
        volatile float product = a[i] * b[i];
        out[i] = a[i] + b[i];
        out[n + i] = product;
        out[2 * n + i] = a[i] / b[i];
        out[3 * n + i] = sqrtf(fabsf(a[i]));
        out[4 * n + i] = fmaf(a[i], b[i], -product);
      } else {
        double *a = POINTER(double, 0), *b = POINTER(double, 1), *out = POINTER(double, 2);
        volatile double product = a[i] * b[i];
        out[i] = a[i] + b[i];
        out[n + i] = product;
        out[2 * n + i] = a[i] / b[i];
        out[3 * n + i] = sqrt(fabs(a[i]));
        out[4 * n + i] = fma(a[i], b[i], -product);
      }
  } else if (strcmp(name, "storage_fp16") == 0) {
    for (u32 i = 0; i < P(u32, 2); i++)
      POINTER(float, 1)[i] = widen(POINTER(uint16_t, 0)[i]);
    for (u32 i = 0; i < P(u32, 5); i++)
      POINTER(uint16_t, 4)[i] = narrow(POINTER(float, 3)[i]);
  } else if (strcmp(name, "arithmetic_fp16") == 0) {
    for (u32 i = 0; i < 2 * P(u32, 4); i++)
      POINTER(uint16_t, 3)[i] =
          narrow((double)widen(POINTER(uint16_t, 0)[i]) * widen(POINTER(uint16_t, 1)[i]) +
                 widen(POINTER(uint16_t, 2)[i]));
  } else if (strcmp(name, "dot_int8") == 0) {
    u32 n = P(u32, 4), *out = POINTER(u32, 3);
    for (u32 i = 0; i < n; i++) {
      out[i] = out[n + i] = POINTER(u32, 2)[i];
      for (int k = 0; k < 4; k++) {
        out[i] += POINTER(int8_t, 0)[4 * i + k] * POINTER(int8_t, 1)[4 * i + k];
        out[n + i] += POINTER(uint8_t, 0)[4 * i + k] * POINTER(uint8_t, 1)[4 * i + k];
      }
    }
  } else if (strcmp(name, "atomics") == 0) {
    u64 *cells = POINTER(u64, 0);
    u32 *tickets = POINTER(u32, 1);
    float ones = threads;
    double all = (double)threads * (threads - 1) / 2, warps = 0;
    u32 xor = 0;
    for (u32 i = 0; i < threads; i++) { xor ^= i; tickets[i] = 1; }
    for (u32 i = 0; i < threads; i += 32) warps += i;
    memset(cells, 0, 96);
    cells[0] = cells[8] = threads;
    cells[1] = cells[9] = (u64)all << 20;
    memcpy(cells + 2, &ones, 4); memcpy(cells + 10, &ones, 4);
    memcpy(cells + 3, &warps, 8); memcpy(cells + 11, &all, 8);
    cells[4] = threads - 1;
    cells[6] = xor;
    cells[7] = threads / 32 * 3;
  } else if (strcmp(name, "memory_write") == 0) {
    for (u64 i = 0; i < 4 * P(u64, 1); i++)
      POINTER(u32, 0)[i & mask] = expected(P(u64, 2) + i, P(u32, 3), P(u32, 4));
  } else if (strcmp(name, "memory_check") == 0) {
    for (u64 i = 0; i < 4 * P(u64, 1); i++) {
      u32 should = expected(P(u64, 2) + i, P(u32, 3), P(u32, 4)), is = POINTER(u32, 0)[i & mask];
      if (is != should) wrong(POINTER(u64, 5), P(u64, 2) + i, should, is);
    }
  } else if (strcmp(name, "copy") == 0) {
    memcpy(POINTER(char, 1), POINTER(char, 0), 16 * P(u64, 2));
  } else if (strcmp(name, "triad") == 0) {
    for (u64 i = 0; i < 4 * P(u64, 3); i++)
      POINTER(float, 2)[i] = POINTER(float, 0)[i] + P(float, 4) * POINTER(float, 1)[i];
  }
}

/* Seconds that a launch takes, and what rate kernels report. */
static double duration(const char *name, u32 threads, void **arguments) {
  double memory = number("STAND_IN_GB_S", 290) * 1e9, tera = number("STAND_IN_TFLOPS", 11) * 1e12;
  if (strncmp(name, "rate_", 5) == 0) {
    double operations = (double)threads * P(u32, 0) * 128;
    int wide = strcmp(name, "rate_fp64") == 0;
    double rate = strcmp(name, "rate_fp32") == 0 ? tera : wide ? tera / 32
                : strcmp(name, "rate_fp16") == 0 ? tera / 64 : tera * 4;
    double each = strcmp(name, "rate_fp16") == 0 ? 4 : strcmp(name, "rate_dp4a") == 0 ? 8 : 2;
    double seconds = operations * each / rate;
    u64 *report = POINTER(u64, 3);
    report[1] = seconds * number("STAND_IN_LOAD_CLOCK", 1500) * 1e6;
    report[2] = seconds * 1e9;
    return seconds;
  }
  if (strcmp(name, "copy") == 0) return 32.0 * P(u64, 2) / memory;
  if (strcmp(name, "triad") == 0) return 48.0 * P(u64, 3) / memory;
  if (strcmp(name, "intensity") == 0) {
    double arithmetic = 8.0 * P(u64, 1) * P(u32, 2) / tera, reading = 16.0 * P(u64, 1) / memory;
    return arithmetic > reading ? arithmetic : reading;
  }
  return 0;
}

int cuLaunchKernel(void *function, u32 x, u32 y, u32 z, u32 a, u32 b, u32 c, u32 shared,
                   void *stream, void **arguments, void **extra) {
  const char *name = function;
  char this[256];
  ALIVE;
  if (hits("hang", name)) for (;;) pause();
  if (hits("crash", name)) abort();
  if (hits("launch", name)) return lost = 719;
  int repeats = strcmp(name, "copy") == 0 || strcmp(name, "triad") == 0;
  int steps = strcmp(name, "intensity") == 0 ? P(u32, 2) : 0;
  void *place = repeats || steps ? AT(P(u64, 0)) : NULL;
  snprintf(this, sizeof this, "%s %p %d", name, place, steps);
  if (strcmp(this, last) != 0 || !repeats && !steps) {
    if (!probe_on_cpu) compute(name, x * a, arguments);
    else if (!probe_on_cpu(name, x, a, arguments)) return 500;
    else if (strcmp(name, "memory_write") == 0) /* the source and what is written here agree */
      for (u64 i = 0; i < 4 * P(u64, 1); i++)
        if (POINTER(u32, 0)[i] != expected(P(u64, 2) + i, P(u32, 3), P(u32, 4))) return 501;
  }
  strcpy(last, this);
  now += 5e-6 + duration(name, x * a, arguments);
  if (hits("wrong", name)) {
    int at = strcmp(name, "atomics") == 0 || strcmp(name, "shared_memory") == 0 ? 0
           : strcmp(name, "storage_fp16") == 0 ? 4 : strncmp(name, "rate_", 5) == 0 ? 3
           : strcmp(name, "intensity") == 0 ? 5 : strcmp(name, "copy") == 0 ? 1
           : strcmp(name, "dot_int8") == 0 || strcmp(name, "arithmetic_fp16") == 0 ? 3 : 2;
    *POINTER(u32, at) ^= 1;
  }
  settle();
  return 0;
}
