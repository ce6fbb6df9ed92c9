/* The host side of a replay. Preloaded into a program, it answers what the program asks of its GPU
 * with an old card's values, and refuses what the old card would refuse. All else goes through.
 *
 * No value of a card stands here: they come as LEGACY_CUDA_REPLAY_HOST, pairs NUMBER=VALUE of device
 * attributes, and LEGACY_CUDA_REPLAY_REFUSE, the words "cooperative", "clusters", "gemm_ex" and
 * "half_gemm". native/answers.py makes both from the catalog. A question whose number is not among
 * the pairs gets the GPU's own answer.
 *
 * It reaches functions that a program or a library calls by name, of a shared CUDA runtime 11, 12 or
 * 13, of the driver and of cuBLAS. Out of its reach: a runtime that is linked statically, and
 * pointers got from dlsym, cuGetProcAddress or cudaGetDriverEntryPoint. The runtime itself reaches
 * the driver that way, so that it sees the GPU as it is.
 *
 * C11 and POSIX, no header of CUDA. Numbers of attributes and errors, and the layout of structures,
 * are those of cuda.h, driver_types.h and cublas_api.h of CUDA 11.8, 12.4 and 13.0;
 * tests/artefact/test_replay_native_headers.py compares them with these headers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* ------------------------------------------------------------------ numbers of CUDA's headers */

enum { /* CUresult and cudaError have the same numbers for these */
    INVALID_VALUE = 1,       /* cudaErrorInvalidValue, CUDA_ERROR_INVALID_VALUE */
    NO_SUCH_SYMBOL = 500,    /* cudaErrorSymbolNotFound, CUDA_ERROR_NOT_FOUND */
    NOT_SUPPORTED = 801,     /* cudaErrorNotSupported, CUDA_ERROR_NOT_SUPPORTED */
    CUBLAS_ARCH_MISMATCH = 8 /* CUBLAS_STATUS_ARCH_MISMATCH */
};

enum { /* CUdevice_attribute and cudaDeviceAttr */
    SHARED_PER_BLOCK = 8,
    THREADS_PER_MULTIPROCESSOR = 39,
    CAPABILITY_MAJOR = 75,
    CAPABILITY_MINOR = 76,
    SHARED_PER_MULTIPROCESSOR = 81,
    SHARED_OPTIN = 97,
    BLOCKS_PER_MULTIPROCESSOR = 106,
    ATTRIBUTES = 256 /* more than either header has */
};

enum { /* CUfunction_attribute and cudaFuncAttribute */
    FUNCTION_SHARED_SIZE = 1, /* CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, of the driver only */
    FUNCTION_MAX_DYNAMIC_SHARED = 8,
    FUNCTION_FIRST_OF_CLUSTERS = 10,
    FUNCTION_LAST_OF_CLUSTERS = 15
};

enum { /* CUlaunchAttributeID and cudaLaunchAttributeID */
    LAUNCH_COOPERATIVE = 2,
    LAUNCH_CLUSTER_DIMENSION = 4,
    LAUNCH_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
    LAUNCH_PROGRAMMATIC_EVENT = 7,
    LAUNCH_PREFERRED_CLUSTER_DIMENSION = 11,
    LAUNCH_COMPLETION_EVENT = 12
};

enum { /* cublasComputeType_t; before CUDA 11 the argument was a cudaDataType */
    COMPUTE_16F = 64,
    COMPUTE_16F_PEDANTIC = 65,
    DATA_16F = 2
};

/* struct cudaDeviceProp: the attribute that asks the same, the field, its bytes, and where it lies
 * in CUDA 11 (also in what 12 calls cudaGetDeviceProperties without _v2), 12 and 13; -1: nowhere. */
#define PROPERTIES(ROW) \
    ROW(8, sharedMemPerBlock, 8, 296, 296, 296) \
    ROW(12, regsPerBlock, 4, 304, 304, 304) \
    ROW(16, multiProcessorCount, 4, 388, 388, 384) \
    ROW(38, l2CacheSize, 4, 616, 616, 596) \
    ROW(39, maxThreadsPerMultiProcessor, 4, 624, 624, 604) \
    ROW(75, major, 4, 360, 360, 360) \
    ROW(76, minor, 4, 364, 364, 364) \
    ROW(81, sharedMemPerMultiprocessor, 8, 640, 640, 624) \
    ROW(82, regsPerMultiprocessor, 4, 648, 648, 632) \
    ROW(87, singleToDoublePrecisionPerfRatio, 4, 668, 668, -1) \
    ROW(88, pageableMemoryAccess, 4, 672, 672, 652) \
    ROW(89, concurrentManagedAccess, 4, 676, 676, 656) \
    ROW(90, computePreemptionSupported, 4, 680, 680, 660) \
    ROW(95, cooperativeLaunch, 4, 688, 688, 668) \
    ROW(96, cooperativeMultiDeviceLaunch, 4, 692, 692, -1) \
    ROW(97, sharedMemPerBlockOptin, 8, 696, 696, 672) \
    ROW(100, pageableMemoryAccessUsesHostPageTables, 4, 704, 704, 680) \
    ROW(101, directManagedMemAccessFromHost, 4, 708, 708, 684) \
    ROW(106, maxBlocksPerMultiProcessor, 4, 712, 712, 688) \
    ROW(108, persistingL2CacheMaxSize, 4, 620, 620, 600) \
    ROW(109, accessPolicyMaxWindowSize, 4, 716, 716, 692) \
    ROW(111, reservedSharedMemPerBlock, 8, 720, 720, 696) \
    ROW(120, clusterLaunch, 4, -1, 772, 748)

#define NAME_SIZE 256 /* of cudaDeviceProp.name, its first field */

struct property {
    int question, size, at[3];
};

static const struct property properties[] = {
#define ROW(question, field, size, cuda11, cuda12, cuda13) {question, size, {cuda11, cuda12, cuda13}},
    PROPERTIES(ROW)
#undef ROW
};

struct extent { /* dim3 */
    unsigned x, y, z;
};

struct attribute { /* cudaLaunchAttribute, CUlaunchAttribute */
    int id;
    char pad[4];
    union {
        char bytes[64];
        int number;
        struct extent extent;
    } value;
};

struct configuration { /* cudaLaunchConfig_t */
    struct extent grid, block;
    size_t shared;
    void *stream;
    const struct attribute *attributes;
    unsigned count;
};

struct driver_configuration { /* CUlaunchConfig */
    struct extent grid, block;
    unsigned shared;
    void *stream;
    const struct attribute *attributes;
    unsigned count;
};

struct function { /* the first fields of cudaFuncAttributes */
    size_t shared, constant, local;
    int threads, registers, ptx, binary;
};

/* ------------------------------------------------------------------------- what is replaced */

#define FUNCTIONS(F) \
    F(cudaGetDeviceProperties) \
    F(cudaGetDeviceProperties_v2) \
    F(cudaDeviceGetAttribute) \
    F(cudaFuncGetAttributes) \
    F(cudaFuncSetAttribute) \
    F(cudaOccupancyMaxActiveBlocksPerMultiprocessor) \
    F(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags) \
    F(cudaLaunchKernel) \
    F(cudaLaunchKernel_ptsz) \
    F(__cudaLaunchKernel) \
    F(__cudaLaunchKernel_ptsz) \
    F(cudaLaunchKernelExC) \
    F(cudaLaunchKernelExC_ptsz) \
    F(cudaLaunchCooperativeKernel) \
    F(cudaLaunchCooperativeKernel_ptsz) \
    F(cudaLaunchCooperativeKernelMultiDevice) \
    F(cudaGetLastError) \
    F(cudaPeekAtLastError) \
    F(cuDeviceGetAttribute) \
    F(cuDeviceComputeCapability) \
    F(cuFuncSetAttribute) \
    F(cuLaunchKernel) \
    F(cuLaunchKernel_ptsz) \
    F(cuLaunchKernelEx) \
    F(cuLaunchKernelEx_ptsz) \
    F(cuLaunchCooperativeKernel) \
    F(cuLaunchCooperativeKernel_ptsz) \
    F(cublasGemmEx) \
    F(cublasGemmBatchedEx) \
    F(cublasGemmStridedBatchedEx)

enum {
#define F(name) FUNCTION_##name,
    FUNCTIONS(F)
#undef F
    FUNCTION_COUNT
};

static const char *const function_names[] = {
#define F(name) #name,
    FUNCTIONS(F)
#undef F
};

enum reason { SHARED, COOPERATIVE, CLUSTERS, PROGRAMMATIC, GEMM_EX, HALF_GEMM, REASONS };

static const char *const reason_texts[REASONS] = {
    "more shared memory than a block can have",
    "no cooperative launch",
    "no thread block clusters",
    "no programmatic dependent launch",
    "CUBLAS_STATUS_ARCH_MISMATCH, as reported of such cards",
    "CUBLAS_STATUS_ARCH_MISMATCH: no half precision arithmetic",
};

static struct {
    bool on;
    const char *capability; /* "6.1" */
    const char *record;     /* the file of JSON lines */
    const char *leave;      /* beginnings of names of libraries that are not answered, in a list */
    bool cooperative, clusters, gemm_ex, half_gemm; /* what is refused */
    size_t shared_optin;
    struct {
        bool told;
        int value;
        atomic_bool recorded;
    } answers[ATTRIBUTES];
} replay;

static pthread_once_t started = PTHREAD_ONCE_INIT;
static atomic_ulong refusals[FUNCTION_COUNT][REASONS]; /* those not yet in the record */
static atomic_bool refused_before[FUNCTION_COUNT][REASONS];
static _Thread_local int last_error; /* of a call that was refused, for cudaGetLastError */

static bool has_word(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; at && (at = strstr(at, word)); at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || !at[length]))
            return true;
    return false;
}

static void in_child(void)
{
    memset(refusals, 0, sizeof refusals); /* the parent tells of them */
}

static void start(void)
{
    const char *host = getenv("LEGACY_CUDA_REPLAY_HOST");
    if (!host || !*host)
        return;
    const char *capability = getenv("LEGACY_CUDA_REPLAY");
    const char *record = getenv("LEGACY_CUDA_REPLAY_RECORD");
    const char *leave = getenv("LEGACY_CUDA_REPLAY_LEAVE");
    const char *refuse = getenv("LEGACY_CUDA_REPLAY_REFUSE");
    /* copies: a program may change its environment */
    replay.capability = strdup(capability ? capability : "");
    replay.record = strdup(record ? record : "");
    replay.leave = strdup(leave ? leave : "");
    replay.cooperative = has_word(refuse, "cooperative");
    replay.clusters = has_word(refuse, "clusters");
    replay.gemm_ex = has_word(refuse, "gemm_ex");
    replay.half_gemm = has_word(refuse, "half_gemm");
    for (char *end; *host; host = end + strspn(end, ", ")) {
        long question = strtol(host, &end, 10), value = 0;
        if (end == host || *end != '=')
            break;
        host = end + 1;
        value = strtol(host, &end, 10);
        if (end == host)
            break;
        if (question > 0 && question < ATTRIBUTES) {
            replay.answers[question].told = true;
            replay.answers[question].value = (int)value;
        }
    }
    replay.shared_optin =
        replay.answers[SHARED_OPTIN].told ? (size_t)replay.answers[SHARED_OPTIN].value : SIZE_MAX;
    replay.on = replay.capability && replay.record && replay.leave;
    pthread_atfork(NULL, NULL, in_child);
}

/* ------------------------------------------------------------------------------- the record */

struct line {
    size_t used;
    char text[8192];
};

static void put(struct line *line, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct line *line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int wrote = vsnprintf(line->text + line->used, sizeof line->text - line->used, format, arguments);
    va_end(arguments);
    if (wrote > 0)
        line->used += (size_t)wrote;
    if (line->used >= sizeof line->text)
        line->used = sizeof line->text - 1;
}

static void put_text(struct line *line, const char *name, const char *text)
{
    put(line, ", \"%s\": \"", name);
    for (const unsigned char *at = (const unsigned char *)text; *at; at++)
        if (*at < 0x20 || *at == '"' || *at == '\\' || *at == 0x7f)
            put(line, "\\u%04x", *at);
        else
            put(line, "%c", *at);
    put(line, "\"");
}

static struct line begin(const char *kind)
{
    struct line line = {0};
    put(&line, "{\"kind\": \"%s\", \"pid\": %ld", kind, (long)getpid());
    return line;
}

/* One write, so that the lines of many processes do not mix; nothing where the record is gone. */
static void finish(struct line *line)
{
    int before = errno;
    put(line, "}\n");
    int file = *replay.record ? open(replay.record, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
    if (file >= 0) {
        ssize_t wrote = write(file, line->text, line->used);
        (void)wrote;
        close(file);
    }
    errno = before;
}

/* How this process was started, shortened. */
static void put_program(struct line *line)
{
    char words[300];
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? 0 : read(file, words, sizeof words - 1);
    if (file >= 0)
        close(file);
    got = got < 0 ? 0 : got;
    while (got && !words[got - 1])
        got--;
    for (ssize_t at = 0; at < got; at++)
        words[at] = words[at] ? words[at] : ' ';
    words[got] = 0;
    put_text(line, "program", words);
}

/* A refusal is written when it first happens, the others are counted for the end. */
static void note_refusal(int function, enum reason reason)
{
    if (atomic_exchange(&refused_before[function][reason], true)) {
        atomic_fetch_add(&refusals[function][reason], 1);
        return;
    }
    struct line line = begin("refused");
    put_text(&line, "name", function_names[function]);
    put_text(&line, "error", reason_texts[reason]);
    finish(&line);
}

/* ---------------------------------------------------------- who calls, and what would be called */

struct object { /* a file that is loaded */
    const void *address; /* in it; what is looked for */
    char path[4096];
    bool is_program;
};

static int holds(struct dl_phdr_info *info, size_t size, void *wanted)
{
    struct object *object = wanted;
    uintptr_t address = (uintptr_t)object->address;
    (void)size;
    for (int n = 0; n < info->dlpi_phnum; n++) {
        uintptr_t from = info->dlpi_addr + info->dlpi_phdr[n].p_vaddr;
        if (info->dlpi_phdr[n].p_type != PT_LOAD || address < from ||
            address - from >= info->dlpi_phdr[n].p_memsz)
            continue;
        object->is_program = !*info->dlpi_name;
        snprintf(object->path, sizeof object->path, "%s", info->dlpi_name);
        return 1;
    }
    return 0;
}

static bool find_object(const void *address, struct object *object)
{
    *object = (struct object){.address = address};
    return dl_iterate_phdr(holds, object) != 0;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

struct named {
    const char *beginning; /* "libcudart.so" */
    char path[4096];
};

static int is_named(struct dl_phdr_info *info, size_t size, void *wanted)
{
    struct named *named = wanted;
    (void)size;
    if (strncmp(base_name(info->dlpi_name), named->beginning, strlen(named->beginning)))
        return 0;
    snprintf(named->path, sizeof named->path, "%s", info->dlpi_name);
    return 1;
}

static bool is_loaded(const char *beginning, struct named *named)
{
    *named = (struct named){.beginning = beginning};
    return dl_iterate_phdr(is_named, named) != 0;
}

static const char *home(const char *symbol)
{
    if (!strncmp(symbol, "cublas", 6))
        return "libcublas.so";
    return !strncmp(symbol, "cuda", 4) || !strncmp(symbol, "__cuda", 6) ? "libcudart.so"
                                                                        : "libcuda.so";
}

static bool is_mine(const void *address)
{
    Dl_info theirs, mine;
    return dladdr(address, &theirs) && dladdr((const void *)start, &mine) &&
           theirs.dli_fbase == mine.dli_fbase;
}

static void *unless_mine(void *found)
{
    return found && !is_mine(found) ? found : NULL;
}

/* The function that the caller would have got without this library.
 *
 * First what the caller was linked with: two runtimes may be loaded, and a library that came by
 * dlopen is in no scope that RTLD_NEXT looks at. Then the order of the program. Then whatever
 * library of that name is loaded. Handles are kept: what is in use stays loaded. */
static void *find_real(const struct object *caller, const char *symbol)
{
    void *found = NULL, *handle;
    struct named named;
    if (!caller->is_program && *caller->path &&
        (handle = dlopen(caller->path, RTLD_LAZY | RTLD_NOLOAD)))
        found = unless_mine(dlsym(handle, symbol));
    if (!found)
        found = unless_mine(dlsym(RTLD_NEXT, symbol));
    if (!found && is_loaded(home(symbol), &named) &&
        (handle = dlopen(named.path, RTLD_LAZY | RTLD_NOLOAD)))
        found = unless_mine(dlsym(handle, symbol));
    return found;
}

struct site { /* a place that calls one of the functions */
    const void *from;
    int function;
    bool asked;    /* the caller is one that is answered */
    void *real;    /* what it would have called */
    void *library; /* the handle of the library that has it */
};

#define SITES 8192 /* a power of two; more call sites than this are resolved anew at each call */

static struct site *_Atomic sites[SITES];
static pthread_mutex_t sites_lock = PTHREAD_MUTEX_INITIALIZER;
static size_t sites_used;

struct seen {
    struct seen *next;
    char path[];
};

/* The first call from a library or program: it goes to the record, with the library it uses. */
static void note_caller(const struct object *caller, const char *through)
{
    static struct seen *all;
    char path[4096];
    ssize_t got = caller->is_program ? readlink("/proc/self/exe", path, sizeof path - 1) : -1;
    if (got >= 0)
        path[got] = 0;
    else
        snprintf(path, sizeof path, "%s", caller->path);
    pthread_mutex_lock(&sites_lock);
    struct seen *seen = all;
    while (seen && strcmp(seen->path, path))
        seen = seen->next;
    bool is_new = !seen;
    if (is_new && (seen = malloc(sizeof *seen + strlen(path) + 1))) {
        strcpy(seen->path, path);
        seen->next = all;
        all = seen;
    }
    pthread_mutex_unlock(&sites_lock);
    if (!is_new)
        return;
    struct line line = begin("host");
    put_program(&line);
    put_text(&line, "library", path);
    put_text(&line, "through", through);
    finish(&line);
}

static bool is_left_alone(const struct object *caller)
{
    const char *name = base_name(caller->path);
    for (const char *at = replay.leave; *at;) {
        size_t length = strcspn(at, " ");
        if (length && !strncmp(name, at, length))
            return true;
        at += length + strspn(at + length, " ");
    }
    return false;
}

static const struct site *meet(int function, const void *from, size_t slot)
{
    static _Thread_local struct site spare;
    struct object caller;
    Dl_info there;
    bool known = find_object(from, &caller);
    struct site site = {.from = from, .function = function};
    site.real = find_real(&caller, function_names[function]);
    site.asked = replay.on && !(known && is_left_alone(&caller));
    if (site.real && dladdr(site.real, &there) && there.dli_fname) {
        site.library = dlopen(there.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        if (site.asked && known)
            note_caller(&caller, there.dli_fname);
    }
    struct site *kept = NULL;
    pthread_mutex_lock(&sites_lock);
    if (sites_used < SITES / 2 && (kept = malloc(sizeof *kept))) {
        *kept = site;
        while (atomic_load(&sites[slot]))
            slot = (slot + 1) % SITES;
        atomic_store(&sites[slot], kept);
        sites_used++;
    }
    pthread_mutex_unlock(&sites_lock);
    if (kept)
        return kept;
    spare = site;
    return &spare;
}

static const struct site *look(int function, const void *from)
{
    pthread_once(&started, start);
    size_t slot = (((uintptr_t)from >> 1) * 31 + (size_t)function) % SITES;
    const struct site *site;
    for (size_t at = slot; (site = atomic_load(&sites[at])); at = (at + 1) % SITES)
        if (site->from == from && site->function == function)
            return site;
    return meet(function, from, slot);
}

/* In a function that is replaced: `site` and `real`, a pointer of its own type. */
#define ENTER(name, missing) \
    const struct site *site = look(FUNCTION_##name, __builtin_return_address(0)); \
    __typeof__(&name) real = (__typeof__(&name))site->real; \
    if (!real) \
    return missing

/* Another function of the library that has the real one. */
static void *beside(const struct site *site, const char *symbol)
{
    return site->library ? unless_mine(dlsym(site->library, symbol)) : NULL;
}

/* ------------------------------------------------------------------------ answers, refusals */

static bool answer(int question, long long own, long long *told)
{
    if (question <= 0 || question >= ATTRIBUTES || !replay.answers[question].told)
        return false;
    *told = replay.answers[question].value;
    if (!atomic_exchange(&replay.answers[question].recorded, true)) {
        struct line line = begin("answered");
        put(&line, ", \"question\": %d, \"gpu\": %lld, \"told\": %lld", question, own, *told);
        finish(&line);
    }
    return true;
}

static int refuse(const struct site *site, enum reason reason, int code)
{
    note_refusal(site->function, reason);
    return code;
}

/* Of the runtime: the next cudaGetLastError tells it too, which is all that <<<...>>> lets see. */
static int refuse_call(const struct site *site, enum reason reason, int code)
{
    last_error = code;
    return refuse(site, reason, code);
}

/* What a launch asks for that the old card has not; REASONS if there is nothing. */
static enum reason objection(size_t shared, const struct attribute *attributes, unsigned count)
{
    if (shared > replay.shared_optin)
        return SHARED;
    for (unsigned n = 0; attributes && n < count; n++) {
        const struct attribute *attribute = &attributes[n];
        switch (attribute->id) {
        case LAUNCH_COOPERATIVE:
            if (replay.cooperative && attribute->value.number)
                return COOPERATIVE;
            break;
        case LAUNCH_CLUSTER_DIMENSION:
        case LAUNCH_PREFERRED_CLUSTER_DIMENSION:
            if (replay.clusters && (attribute->value.extent.x > 1 || attribute->value.extent.y > 1 ||
                                    attribute->value.extent.z > 1))
                return CLUSTERS;
            break;
        case LAUNCH_PROGRAMMATIC_STREAM_SERIALIZATION:
            if (replay.clusters && attribute->value.number)
                return PROGRAMMATIC;
            break;
        case LAUNCH_PROGRAMMATIC_EVENT:
        case LAUNCH_COMPLETION_EVENT:
            if (replay.clusters)
                return PROGRAMMATIC;
            break;
        }
    }
    return REASONS;
}

/* Too much shared memory is an invalid value, on every card (cudaFuncSetAttribute, cuLaunchKernel).
 * Which error an old card gives for the rest is not measured: "not supported" says what is meant. */
static int code_of(enum reason reason)
{
    return reason == SHARED ? INVALID_VALUE : NOT_SUPPORTED;
}

static void tell_properties(char *properties_of_gpu, int layout)
{
    char suffix[64];
    for (size_t n = 0; n < sizeof properties / sizeof *properties; n++) {
        const struct property *property = &properties[n];
        int at = property->at[layout];
        long long told;
        if (at < 0)
            continue;
        if (property->size == 8) {
            size_t own, value;
            memcpy(&own, properties_of_gpu + at, sizeof own);
            if (answer(property->question, (long long)own, &told)) {
                value = (size_t)told;
                memcpy(properties_of_gpu + at, &value, sizeof value);
            }
        } else {
            int own, value;
            memcpy(&own, properties_of_gpu + at, sizeof own);
            if (answer(property->question, own, &told)) {
                value = (int)told;
                memcpy(properties_of_gpu + at, &value, sizeof value);
            }
        }
    }
    snprintf(suffix, sizeof suffix, " (replayed as %s)", replay.capability);
    size_t length = strnlen(properties_of_gpu, NAME_SIZE - 1);
    if (length + strlen(suffix) < NAME_SIZE)
        strcpy(properties_of_gpu + length, suffix);
}

/* -------------------------------------------------------------------------- the CUDA runtime */

EXPORT int cudaGetDeviceProperties(char *told, int device)
{
    ENTER(cudaGetDeviceProperties, NO_SUCH_SYMBOL);
    int code = real(told, device), version = 0;
    int (*ask)(int *) = (int (*)(int *))beside(site, "cudaRuntimeGetVersion");
    if (!code && site->asked && ask && !ask(&version))
        tell_properties(told, version >= 13000 ? 2 : 0);
    return code;
}

EXPORT int cudaGetDeviceProperties_v2(char *told, int device)
{
    ENTER(cudaGetDeviceProperties_v2, NO_SUCH_SYMBOL);
    int code = real(told, device);
    if (!code && site->asked)
        tell_properties(told, 1);
    return code;
}

EXPORT int cudaDeviceGetAttribute(int *value, int question, int device)
{
    ENTER(cudaDeviceGetAttribute, NO_SUCH_SYMBOL);
    int code = real(value, question, device);
    long long told;
    if (!code && site->asked && answer(question, *value, &told))
        *value = (int)told;
    return code;
}

/* The PTX is the old card's and so is its number; the binary made from it would be the old card's
 * too. */
EXPORT int cudaFuncGetAttributes(struct function *told, const void *function)
{
    ENTER(cudaFuncGetAttributes, NO_SUCH_SYMBOL);
    int code = real(told, function);
    if (!code && site->asked && replay.answers[CAPABILITY_MAJOR].told)
        told->binary = replay.answers[CAPABILITY_MAJOR].value * 10 +
                       replay.answers[CAPABILITY_MINOR].value;
    return code;
}

/* Bytes of shared memory that a kernel has without asking; 0 where that cannot be known. */
static size_t static_shared(const struct site *site, const void *function)
{
    char told[1024] = {0}; /* cudaFuncAttributes, and room for a longer one */
    int (*ask)(void *, const void *) =
        (int (*)(void *, const void *))beside(site, "cudaFuncGetAttributes");
    return ask && !ask(told, function) ? ((struct function *)(void *)told)->shared : 0;
}

EXPORT int cudaFuncSetAttribute(const void *function, int attribute, int value)
{
    ENTER(cudaFuncSetAttribute, NO_SUCH_SYMBOL);
    if (site->asked && attribute == FUNCTION_MAX_DYNAMIC_SHARED && value > 0 &&
        (size_t)value + static_shared(site, function) > replay.shared_optin)
        return refuse_call(site, SHARED, INVALID_VALUE);
    if (site->asked && replay.clusters && value && attribute >= FUNCTION_FIRST_OF_CLUSTERS &&
        attribute <= FUNCTION_LAST_OF_CLUSTERS)
        return refuse_call(site, CLUSTERS, NOT_SUPPORTED);
    return real(function, attribute, value);
}

/* At most what the old card's limits of threads, blocks and shared memory allow. Its registers are
 * not known here: the kernel was compiled for the GPU at hand. */
static void limit_blocks(const struct site *site, int *blocks, const void *function, int threads,
                         size_t dynamic)
{
    size_t shared = dynamic + static_shared(site, function);
    long long most = *blocks, whole = (threads + 31) / 32 * 32;
    if (shared > replay.shared_optin)
        most = 0;
    if (replay.answers[BLOCKS_PER_MULTIPROCESSOR].told &&
        most > replay.answers[BLOCKS_PER_MULTIPROCESSOR].value)
        most = replay.answers[BLOCKS_PER_MULTIPROCESSOR].value;
    if (replay.answers[THREADS_PER_MULTIPROCESSOR].told && whole > 0 &&
        most > replay.answers[THREADS_PER_MULTIPROCESSOR].value / whole)
        most = replay.answers[THREADS_PER_MULTIPROCESSOR].value / whole;
    if (replay.answers[SHARED_PER_MULTIPROCESSOR].told && shared &&
        (size_t)most > (size_t)replay.answers[SHARED_PER_MULTIPROCESSOR].value / shared)
        most = (long long)((size_t)replay.answers[SHARED_PER_MULTIPROCESSOR].value / shared);
    *blocks = (int)most;
}

EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function,
                                                         int threads, size_t shared)
{
    ENTER(cudaOccupancyMaxActiveBlocksPerMultiprocessor, NO_SUCH_SYMBOL);
    int code = real(blocks, function, threads, shared);
    if (!code && site->asked)
        limit_blocks(site, blocks, function, threads, shared);
    return code;
}

EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                                  int threads, size_t shared,
                                                                  unsigned flags)
{
    ENTER(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, NO_SUCH_SYMBOL);
    int code = real(blocks, function, threads, shared, flags);
    if (!code && site->asked)
        limit_blocks(site, blocks, function, threads, shared);
    return code;
}

/* cudaLaunchKernel, and what nvcc 12 and newer may write for <<<...>>> instead: __cudaLaunchKernel
 * (crt/host_runtime.h); _ptsz where the default stream is the thread's. */
#define LAUNCH(name) \
    EXPORT int name(const void *function, struct extent grid, struct extent block, void **values, \
                    size_t shared, void *stream) \
    { \
        ENTER(name, NO_SUCH_SYMBOL); \
        if (site->asked && shared > replay.shared_optin) \
            return refuse_call(site, SHARED, INVALID_VALUE); \
        return real(function, grid, block, values, shared, stream); \
    }
LAUNCH(cudaLaunchKernel)
LAUNCH(cudaLaunchKernel_ptsz)
LAUNCH(__cudaLaunchKernel)
LAUNCH(__cudaLaunchKernel_ptsz)

#define LAUNCH_EX(name) \
    EXPORT int name(const struct configuration *how, const void *function, void **values) \
    { \
        ENTER(name, NO_SUCH_SYMBOL); \
        enum reason reason = \
            site->asked && how ? objection(how->shared, how->attributes, how->count) : REASONS; \
        if (reason != REASONS) \
            return refuse_call(site, reason, code_of(reason)); \
        return real(how, function, values); \
    }
LAUNCH_EX(cudaLaunchKernelExC)
LAUNCH_EX(cudaLaunchKernelExC_ptsz)

#define LAUNCH_COOPERATIVE_KERNEL(name) \
    EXPORT int name(const void *function, struct extent grid, struct extent block, void **values, \
                    size_t shared, void *stream) \
    { \
        ENTER(name, NO_SUCH_SYMBOL); \
        if (site->asked && replay.cooperative) \
            return refuse_call(site, COOPERATIVE, NOT_SUPPORTED); \
        if (site->asked && shared > replay.shared_optin) \
            return refuse_call(site, SHARED, INVALID_VALUE); \
        return real(function, grid, block, values, shared, stream); \
    }
LAUNCH_COOPERATIVE_KERNEL(cudaLaunchCooperativeKernel)
LAUNCH_COOPERATIVE_KERNEL(cudaLaunchCooperativeKernel_ptsz)

EXPORT int cudaLaunchCooperativeKernelMultiDevice(void *launches, unsigned devices, unsigned flags)
{
    ENTER(cudaLaunchCooperativeKernelMultiDevice, NO_SUCH_SYMBOL);
    if (site->asked && replay.cooperative)
        return refuse_call(site, COOPERATIVE, NOT_SUPPORTED);
    return real(launches, devices, flags);
}

EXPORT int cudaGetLastError(void)
{
    ENTER(cudaGetLastError, NO_SUCH_SYMBOL);
    int code = real(), refused = last_error;
    if (!site->asked)
        return code;
    last_error = 0;
    return code ? code : refused;
}

EXPORT int cudaPeekAtLastError(void)
{
    ENTER(cudaPeekAtLastError, NO_SUCH_SYMBOL);
    int code = real();
    return code || !site->asked ? code : last_error;
}

/* -------------------------------------------------------------------------------- the driver */

EXPORT int cuDeviceGetAttribute(int *value, int question, int device)
{
    ENTER(cuDeviceGetAttribute, NO_SUCH_SYMBOL);
    int code = real(value, question, device);
    long long told;
    if (!code && site->asked && answer(question, *value, &told))
        *value = (int)told;
    return code;
}

EXPORT int cuDeviceComputeCapability(int *major, int *minor, int device)
{
    ENTER(cuDeviceComputeCapability, NO_SUCH_SYMBOL);
    int code = real(major, minor, device);
    long long told;
    if (!code && site->asked && answer(CAPABILITY_MAJOR, *major, &told)) {
        *major = (int)told;
        if (answer(CAPABILITY_MINOR, *minor, &told))
            *minor = (int)told;
    }
    return code;
}

EXPORT int cuFuncSetAttribute(void *function, int attribute, int value)
{
    ENTER(cuFuncSetAttribute, NO_SUCH_SYMBOL);
    int (*ask)(int *, int, void *) =
        (int (*)(int *, int, void *))beside(site, "cuFuncGetAttribute");
    int own = 0;
    if (site->asked && attribute == FUNCTION_MAX_DYNAMIC_SHARED && value > 0) {
        if (!ask || ask(&own, FUNCTION_SHARED_SIZE, function))
            own = 0;
        if ((size_t)value + (size_t)own > replay.shared_optin)
            return refuse(site, SHARED, INVALID_VALUE);
    }
    if (site->asked && replay.clusters && value && attribute >= FUNCTION_FIRST_OF_CLUSTERS &&
        attribute <= FUNCTION_LAST_OF_CLUSTERS)
        return refuse(site, CLUSTERS, NOT_SUPPORTED);
    return real(function, attribute, value);
}

#define DRIVER_LAUNCH(name) \
    EXPORT int name(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, \
                    unsigned by, unsigned bz, unsigned shared, void *stream, void **values, \
                    void **extra) \
    { \
        ENTER(name, NO_SUCH_SYMBOL); \
        if (site->asked && shared > replay.shared_optin) \
            return refuse(site, SHARED, INVALID_VALUE); \
        return real(function, gx, gy, gz, bx, by, bz, shared, stream, values, extra); \
    }
DRIVER_LAUNCH(cuLaunchKernel)
DRIVER_LAUNCH(cuLaunchKernel_ptsz)

#define DRIVER_LAUNCH_EX(name) \
    EXPORT int name(const struct driver_configuration *how, void *function, void **values, \
                    void **extra) \
    { \
        ENTER(name, NO_SUCH_SYMBOL); \
        enum reason reason = \
            site->asked && how ? objection(how->shared, how->attributes, how->count) : REASONS; \
        if (reason != REASONS) \
            return refuse(site, reason, code_of(reason)); \
        return real(how, function, values, extra); \
    }
DRIVER_LAUNCH_EX(cuLaunchKernelEx)
DRIVER_LAUNCH_EX(cuLaunchKernelEx_ptsz)

#define DRIVER_LAUNCH_COOPERATIVE(name) \
    EXPORT int name(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, \
                    unsigned by, unsigned bz, unsigned shared, void *stream, void **values) \
    { \
        ENTER(name, NO_SUCH_SYMBOL); \
        if (site->asked && replay.cooperative) \
            return refuse(site, COOPERATIVE, NOT_SUPPORTED); \
        if (site->asked && shared > replay.shared_optin) \
            return refuse(site, SHARED, INVALID_VALUE); \
        return real(function, gx, gy, gz, bx, by, bz, shared, stream, values); \
    }
DRIVER_LAUNCH_COOPERATIVE(cuLaunchCooperativeKernel)
DRIVER_LAUNCH_COOPERATIVE(cuLaunchCooperativeKernel_ptsz)

/* ------------------------------------------------------------------------------------ cuBLAS */

/* Below 5.0 these were reported to answer CUBLAS_STATUS_ARCH_MISMATCH for every type, and below 5.3,
 * where there is no half precision arithmetic, for the compute type 16F (sources: the catalog's
 * capabilities.toml; JuliaGPU/CUDA.jl #609). Reported by users, not measured here. */
static enum reason objection_to_gemm(const struct site *site, int compute)
{
    if (!site->asked)
        return REASONS;
    if (replay.gemm_ex)
        return GEMM_EX;
    bool half = compute == COMPUTE_16F || compute == COMPUTE_16F_PEDANTIC || compute == DATA_16F;
    return replay.half_gemm && half ? HALF_GEMM : REASONS;
}

EXPORT int cublasGemmEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha,
                        const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                        const void *beta, void *c, int c_type, int ldc, int compute, int algorithm)
{
    ENTER(cublasGemmEx, CUBLAS_ARCH_MISMATCH);
    enum reason reason = objection_to_gemm(site, compute);
    if (reason != REASONS)
        return refuse(site, reason, CUBLAS_ARCH_MISMATCH);
    return real(handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type,
                ldc, compute, algorithm);
}

EXPORT int cublasGemmBatchedEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha,
                               const void *const *a, int a_type, int lda, const void *const *b,
                               int b_type, int ldb, const void *beta, void *const *c, int c_type,
                               int ldc, int count, int compute, int algorithm)
{
    ENTER(cublasGemmBatchedEx, CUBLAS_ARCH_MISMATCH);
    enum reason reason = objection_to_gemm(site, compute);
    if (reason != REASONS)
        return refuse(site, reason, CUBLAS_ARCH_MISMATCH);
    return real(handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type,
                ldc, count, compute, algorithm);
}

EXPORT int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k,
                                      const void *alpha, const void *a, int a_type, int lda,
                                      long long a_stride, const void *b, int b_type, int ldb,
                                      long long b_stride, const void *beta, void *c, int c_type,
                                      int ldc, long long c_stride, int count, int compute,
                                      int algorithm)
{
    ENTER(cublasGemmStridedBatchedEx, CUBLAS_ARCH_MISMATCH);
    enum reason reason = objection_to_gemm(site, compute);
    if (reason != REASONS)
        return refuse(site, reason, CUBLAS_ARCH_MISMATCH);
    return real(handle, ta, tb, m, n, k, alpha, a, a_type, lda, a_stride, b, b_type, ldb, b_stride,
                beta, c, c_type, ldc, c_stride, count, compute, algorithm);
}

/* ---------------------------------------------------------------------------------- the end */

/* What was counted, and whether the driver was used by what cannot be answered: with a runtime that
 * is linked statically, say. */
__attribute__((destructor)) static void end(void)
{
    struct named named;
    pthread_once(&started, start);
    if (!replay.on)
        return;
    for (int function = 0; function < FUNCTION_COUNT; function++)
        for (int reason = 0; reason < REASONS; reason++) {
            unsigned long times = atomic_exchange(&refusals[function][reason], 0);
            if (!times)
                continue;
            struct line line = begin("refused");
            put_text(&line, "name", function_names[function]);
            put_text(&line, "error", reason_texts[reason]);
            put(&line, ", \"times\": %lu", times);
            finish(&line);
        }
    if (!sites_used && is_loaded("libcuda.so", &named) && !is_loaded("libcudart.so", &named)) {
        struct line line = begin("unanswered");
        put_program(&line);
        finish(&line);
    }
}
