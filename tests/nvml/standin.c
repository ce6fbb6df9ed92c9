/* A stand-in for NVIDIA's libnvidia-ml.so.1, for tests: NVML's C interface, answered from a file.
 *
 * It is no part of a driver and touches no GPU. The layouts are those that nvidia-ml-py declares.
 * LEGACY_CUDA_NVML_STANDIN names the file, which is read again whenever it has changed. A line is
 *
 *     DEVICE KEY HANG RETURN VALUE...
 *
 * DEVICE is an index, or - for the machine. KEY is the function's name, and its arguments after
 * dots: nvmlDeviceGetTemperature.0. HANG is how many seconds the call takes, RETURN its nvmlReturn_t,
 * and VALUE... what it writes, in the order of its parameters or of its structure: numbers, or the
 * text up to the end of the line. The function's name alone answers what has no line with those
 * arguments, * what has no line at all; else a call returns NVML_ERROR_NOT_SUPPORTED. standin.py
 * writes the file.
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define API __attribute__((visibility("default")))

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    UNKNOWN = 999
};
enum { DEVICES = 64, VALUES = 1024, TEXT = 128, MACHINE = -1 };

typedef unsigned long long u64;
typedef void *device_t;

struct answer {
    int ret;
    unsigned count;
    u64 values[VALUES];
    char text[TEXT];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *lines;
static struct timespec changed;
static ino_t inode;
static int users;           /* nvmlInit less nvmlShutdown */
static char device[DEVICES]; /* a handle is the address of one of these */

/* The file's text, read again if it is another than before. To be called with the lock held. */
static const char *state(void) {
    const char *path = getenv("LEGACY_CUDA_NVML_STANDIN");
    struct stat now;
    if (!path || stat(path, &now))
        return "";
    if (lines && now.st_ino == inode && now.st_mtim.tv_sec == changed.tv_sec &&
        now.st_mtim.tv_nsec == changed.tv_nsec)
        return lines;
    FILE *file = fopen(path, "r");
    char *text = calloc(1, (size_t)now.st_size + 1);
    if (file && text) {
        size_t got = fread(text, 1, (size_t)now.st_size, file);
        text[got] = 0;
        free(lines);
        lines = text;
        changed = now.st_mtim;
        inode = now.st_ino;
    }
    if (file)
        fclose(file);
    return lines ? lines : "";
}

/* What follows "INDEX KEY " in the file's text from there on, or NULL. */
static const char *line(const char *text, int index, const char *key) {
    char head[160];
    int length = index == MACHINE ? snprintf(head, sizeof head, "- %s ", key)
                                  : snprintf(head, sizeof head, "%d %s ", index, key);
    while (text && *text) {
        if (!strncmp(text, head, (size_t)length))
            return text + length;
        text = strchr(text, '\n');
        text += text != NULL;
    }
    return NULL;
}

static void wait_seconds(double seconds) {
    struct timespec rest = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&rest, &rest))
        ; /* a call that hangs in the kernel is not interrupted by a signal either */
}

static void parse(const char *rest, struct answer *answer, double *hang) {
    char *next;
    *hang = strtod(rest, &next);
    answer->ret = (int)strtol(next, &next, 10);
    while (*next == ' ')
        next++;
    snprintf(answer->text, TEXT, "%.*s", (int)strcspn(next, "\n"), next);
    while (answer->count < VALUES && *next && *next != '\n') {
        char *end;
        u64 value = strtoull(next, &end, 10);
        if (end == next)
            break; /* a text */
        answer->values[answer->count++] = value;
        next = end + strspn(end, " ");
    }
}

/* Look up a call and take as long over it as the file says. Returns its nvmlReturn_t. */
static int ask(int index, const char *key, struct answer *answer) {
    double hang = 0;
    memset(answer, 0, sizeof *answer);
    answer->ret = NOT_SUPPORTED;
    pthread_mutex_lock(&lock);
    if (!users && strncmp(key, "nvmlInit", 8)) {
        pthread_mutex_unlock(&lock);
        return UNINITIALIZED;
    }
    const char *text = state();
    char name[96];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(key, "."), key);
    const char *rest = line(text, index, key);
    if (!rest)
        rest = line(text, index, name);
    if (!rest)
        rest = line(text, index, "*");
    if (rest)
        parse(rest, answer, &hang);
    pthread_mutex_unlock(&lock);
    if (hang > 0)
        wait_seconds(hang);
    return answer->ret;
}

static int index_of(device_t handle) {
    char *place = handle;
    return place >= device && place < device + DEVICES ? (int)(place - device) : DEVICES;
}

static int ask_device(device_t handle, const char *key, struct answer *answer) {
    int index = index_of(handle);
    return index == DEVICES ? INVALID_ARGUMENT : ask(index, key, answer);
}

static int copy_text(const struct answer *answer, char *out, unsigned length) {
    if (strlen(answer->text) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(out, answer->text);
    return SUCCESS;
}

/* Functions of one shape each: (device, arguments..., results...). ----------------------------- */

#define NUMBER(NAME, TYPE)                                                                         \
    API int NAME(device_t handle, TYPE *out) {                                                     \
        struct answer a;                                                                           \
        int ret = ask_device(handle, #NAME, &a);                                                   \
        if (!ret)                                                                                  \
            *out = (TYPE)a.values[0];                                                              \
        return ret;                                                                                \
    }
#define NUMBER_OF(NAME, TYPE)                                                                      \
    API int NAME(device_t handle, unsigned which, TYPE *out) {                                     \
        struct answer a;                                                                           \
        char key[96];                                                                              \
        snprintf(key, sizeof key, #NAME ".%u", which);                                             \
        int ret = ask_device(handle, key, &a);                                                     \
        if (!ret)                                                                                  \
            *out = (TYPE)a.values[0];                                                              \
        return ret;                                                                                \
    }
#define PAIR(NAME)                                                                                 \
    API int NAME(device_t handle, unsigned *first, unsigned *second) {                             \
        struct answer a;                                                                           \
        int ret = ask_device(handle, #NAME, &a);                                                   \
        if (!ret) {                                                                                \
            *first = (unsigned)a.values[0];                                                        \
            *second = (unsigned)a.values[1];                                                       \
        }                                                                                          \
        return ret;                                                                                \
    }
#define STRING(NAME)                                                                               \
    API int NAME(device_t handle, char *out, unsigned length) {                                    \
        struct answer a;                                                                           \
        int ret = ask_device(handle, #NAME, &a);                                                   \
        return ret ? ret : copy_text(&a, out, length);                                             \
    }

NUMBER(nvmlDeviceGetMinorNumber, unsigned)
NUMBER(nvmlDeviceGetFanSpeed, unsigned)
NUMBER(nvmlDeviceGetPerformanceState, unsigned)
NUMBER(nvmlDeviceGetPowerState, unsigned)
NUMBER(nvmlDeviceGetPowerUsage, unsigned)
NUMBER(nvmlDeviceGetPowerManagementMode, unsigned)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, u64)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned)
NUMBER(nvmlDeviceGetComputeMode, unsigned)
NUMBER(nvmlDeviceGetDisplayMode, unsigned)
NUMBER(nvmlDeviceGetDisplayActive, unsigned)
NUMBER(nvmlDeviceGetBrand, unsigned)
NUMBER(nvmlDeviceGetArchitecture, unsigned)
NUMBER(nvmlDeviceGetMultiGpuBoard, unsigned)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned)
NUMBER(nvmlDeviceGetPcieReplayCounter, unsigned)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned)
NUMBER(nvmlDeviceGetMaxMigDeviceCount, unsigned)
NUMBER(nvmlDeviceIsMigDeviceHandle, unsigned)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, u64)
NUMBER(nvmlDeviceGetSupportedClocksThrottleReasons, u64)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64)
NUMBER(nvmlDeviceGetSupportedClocksEventReasons, u64)
NUMBER(nvmlDeviceGetSupportedEventTypes, u64)
NUMBER(nvmlDeviceGetNumGpuCores, unsigned)
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned)
NUMBER_OF(nvmlDeviceGetTemperature, unsigned)
NUMBER_OF(nvmlDeviceGetTemperatureThreshold, unsigned)
NUMBER_OF(nvmlDeviceGetClockInfo, unsigned)
NUMBER_OF(nvmlDeviceGetMaxClockInfo, unsigned)
NUMBER_OF(nvmlDeviceGetApplicationsClock, unsigned)
NUMBER_OF(nvmlDeviceGetPcieThroughput, unsigned)
PAIR(nvmlDeviceGetEncoderUtilization)
PAIR(nvmlDeviceGetDecoderUtilization)
PAIR(nvmlDeviceGetEccMode)
PAIR(nvmlDeviceGetMigMode)
PAIR(nvmlDeviceGetDriverModel) /* of Windows only */
PAIR(nvmlDeviceGetPowerManagementLimitConstraints)
PAIR(nvmlDeviceGetCudaComputeCapability)
STRING(nvmlDeviceGetName)
STRING(nvmlDeviceGetUUID)
STRING(nvmlDeviceGetSerial)
STRING(nvmlDeviceGetVbiosVersion)
STRING(nvmlDeviceGetBoardPartNumber)

/* The library and the machine ------------------------------------------------------------------ */

static int init(const char *key) {
    struct answer a;
    int ret = ask(MACHINE, key, &a);
    if (!ret) {
        pthread_mutex_lock(&lock);
        users++;
        pthread_mutex_unlock(&lock);
    }
    return ret;
}
API int nvmlInit(void) { return init("nvmlInit"); }
API int nvmlInit_v2(void) { return init("nvmlInit"); }
API int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return init("nvmlInit");
}

API int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    int ret = users ? SUCCESS : UNINITIALIZED;
    users -= users > 0;
    pthread_mutex_unlock(&lock);
    return ret;
}

API const char *nvmlErrorString(int error) {
    switch (error) { /* the texts of NVML's own documentation */
    case 0: return "Success";
    case 1: return "Uninitialized";
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 6: return "Not Found";
    case 7: return "Insufficient Size";
    case 9: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 12: return "NVML Shared Library Not Found";
    case 13: return "Function Not Found";
    case 14: return "Corrupted infoROM";
    case 15: return "GPU is lost";
    case 16: return "GPU requires restart";
    case 17: return "The operating system has blocked the request.";
    case 18: return "RM has detected an NVML/RM version mismatch.";
    default: return "Unknown Error";
    }
}

static int machine_text(const char *key, char *out, unsigned length) {
    struct answer a;
    int ret = ask(MACHINE, key, &a);
    return ret ? ret : copy_text(&a, out, length);
}
API int nvmlSystemGetDriverVersion(char *out, unsigned length) {
    return machine_text("nvmlSystemGetDriverVersion", out, length);
}
API int nvmlSystemGetNVMLVersion(char *out, unsigned length) {
    return machine_text("nvmlSystemGetNVMLVersion", out, length);
}

static int cuda_version(int *out) {
    struct answer a;
    int ret = ask(MACHINE, "nvmlSystemGetCudaDriverVersion", &a);
    if (!ret)
        *out = (int)a.values[0];
    return ret;
}
API int nvmlSystemGetCudaDriverVersion(int *out) { return cuda_version(out); }
API int nvmlSystemGetCudaDriverVersion_v2(int *out) { return cuda_version(out); }

API int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned length) {
    char key[64];
    snprintf(key, sizeof key, "nvmlSystemGetProcessName.%u", pid);
    int ret = machine_text(key, out, length);
    return ret == NOT_SUPPORTED ? NOT_FOUND : ret;
}

/* Devices and their handles -------------------------------------------------------------------- */

static int count(unsigned *out) {
    struct answer a;
    int ret = ask(MACHINE, "nvmlDeviceGetCount", &a);
    if (!ret)
        *out = (unsigned)a.values[0];
    return ret;
}
API int nvmlDeviceGetCount(unsigned *out) { return count(out); }
API int nvmlDeviceGetCount_v2(unsigned *out) { return count(out); }

static int handle_by_index(unsigned index, device_t *out) {
    struct answer a;
    unsigned devices = 0;
    int ret = count(&devices);
    if (ret)
        return ret;
    if (index >= devices)
        return INVALID_ARGUMENT;
    ret = ask((int)index, "nvmlDeviceGetHandleByIndex", &a);
    if (!ret)
        *out = device + index;
    return ret;
}
API int nvmlDeviceGetHandleByIndex(unsigned index, device_t *out) {
    return handle_by_index(index, out);
}
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *out) {
    return handle_by_index(index, out);
}

/* The device for which KEY answers with TEXT. */
static int handle_by_text(const char *key, const char *text, device_t *out) {
    struct answer a;
    unsigned devices = 0;
    int ret = count(&devices);
    for (unsigned index = 0; !ret && index < devices; index++)
        if (!ask((int)index, key, &a) && strcasestr(a.text, text))
            return handle_by_index(index, out);
    return ret ? ret : NOT_FOUND;
}
API int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *out) {
    return handle_by_text("nvmlDeviceGetUUID", uuid, out);
}
API int nvmlDeviceGetHandleByPciBusId(const char *id, device_t *out) {
    return handle_by_text("nvmlDeviceGetPciInfo", id, out);
}
API int nvmlDeviceGetHandleByPciBusId_v2(const char *id, device_t *out) {
    return handle_by_text("nvmlDeviceGetPciInfo", id, out);
}
API int nvmlDeviceGetIndex(device_t handle, unsigned *out) {
    struct answer a;
    int ret = ask_device(handle, "nvmlDeviceGetIndex", &a);
    if (!ret)
        *out = (unsigned)index_of(handle);
    return ret;
}

/* VALUE...: domain, bus, device, PCI ids of the chip and of the board, and the address as text,
 * which is the last word of the line. */
struct pci {
    char legacy_id[16];
    unsigned domain, bus, device, id, subsystem;
    char id_text[32];
};
static int pci_info(device_t handle, struct pci *out) {
    struct answer a;
    int ret = ask_device(handle, "nvmlDeviceGetPciInfo", &a);
    if (ret)
        return ret;
    const char *address = strrchr(a.text, ' ');
    if (!address || a.count < 5)
        return UNKNOWN;
    memset(out, 0, sizeof *out);
    out->domain = (unsigned)a.values[0];
    out->bus = (unsigned)a.values[1];
    out->device = (unsigned)a.values[2];
    out->id = (unsigned)a.values[3];
    out->subsystem = (unsigned)a.values[4];
    snprintf(out->id_text, sizeof out->id_text, "%.31s", address + 1);
    snprintf(out->legacy_id, sizeof out->legacy_id, "%04X:%02X:%02X.0", out->domain & 0xffff,
             out->bus & 0xff, out->device & 0xff);
    return SUCCESS;
}
API int nvmlDeviceGetPciInfo_v2(device_t handle, struct pci *out) { return pci_info(handle, out); }
API int nvmlDeviceGetPciInfo_v3(device_t handle, struct pci *out) { return pci_info(handle, out); }

/* Structures ----------------------------------------------------------------------------------- */

API int nvmlDeviceGetUtilizationRates(device_t handle, unsigned out[2]) {
    struct answer a;
    int ret = ask_device(handle, "nvmlDeviceGetUtilizationRates", &a);
    if (!ret) {
        out[0] = (unsigned)a.values[0];
        out[1] = (unsigned)a.values[1];
    }
    return ret;
}

/* VALUE...: total, reserved, used. The first version of the structure counts what is reserved as
 * used; the second names it. */
API int nvmlDeviceGetMemoryInfo(device_t handle, u64 out[3]) {
    struct answer a;
    int ret = ask_device(handle, "nvmlDeviceGetMemoryInfo", &a);
    if (!ret) {
        out[0] = a.values[0];
        out[2] = a.values[1] + a.values[2];
        out[1] = out[0] - out[2];
    }
    return ret;
}
struct memory_v2 {
    unsigned version;
    u64 total, reserved, free, used;
};
API int nvmlDeviceGetMemoryInfo_v2(device_t handle, struct memory_v2 *out) {
    struct answer a;
    if (out->version != (sizeof *out | 2u << 24))
        return 25; /* NVML_ERROR_ARGUMENT_VERSION_MISMATCH */
    int ret = ask_device(handle, "nvmlDeviceGetMemoryInfo", &a);
    if (!ret) {
        out->total = a.values[0];
        out->reserved = a.values[1];
        out->used = a.values[2];
        out->free = out->total - out->reserved - out->used;
    }
    return ret;
}

/* VALUE...: total, used */
API int nvmlDeviceGetBAR1MemoryInfo(device_t handle, u64 out[3]) {
    struct answer a;
    int ret = ask_device(handle, "nvmlDeviceGetBAR1MemoryInfo", &a);
    if (!ret) {
        out[0] = a.values[0];
        out[1] = a.values[0] - a.values[1];
        out[2] = a.values[1];
    }
    return ret;
}

API int nvmlDeviceGetTotalEccErrors(device_t handle, unsigned type, unsigned counter, u64 *out) {
    struct answer a;
    char key[96];
    snprintf(key, sizeof key, "nvmlDeviceGetTotalEccErrors.%u.%u", type, counter);
    int ret = ask_device(handle, key, &a);
    if (!ret)
        *out = a.values[0];
    return ret;
}
API int nvmlDeviceGetMemoryErrorCounter(device_t handle, unsigned type, unsigned counter,
                                        unsigned place, u64 *out) {
    struct answer a;
    char key[96];
    snprintf(key, sizeof key, "nvmlDeviceGetMemoryErrorCounter.%u.%u.%u", type, counter, place);
    int ret = ask_device(handle, key, &a);
    if (!ret)
        *out = a.values[0];
    return ret;
}

/* Writes as many numbers as there is room for; NULL asks how many there are. */
API int nvmlDeviceGetRetiredPages(device_t handle, unsigned cause, unsigned *number, u64 *out) {
    struct answer a;
    char key[96];
    snprintf(key, sizeof key, "nvmlDeviceGetRetiredPages.%u", cause);
    int ret = ask_device(handle, key, &a);
    if (ret)
        return ret;
    unsigned room = *number;
    *number = a.count;
    if (a.count && (!out || room < a.count))
        return INSUFFICIENT_SIZE;
    memcpy(out, a.values, out ? a.count * sizeof *out : 0);
    return SUCCESS;
}

API int nvmlDeviceGetViolationStatus(device_t handle, unsigned policy, u64 out[2]) {
    struct answer a;
    char key[96];
    snprintf(key, sizeof key, "nvmlDeviceGetViolationStatus.%u", policy);
    int ret = ask_device(handle, key, &a);
    if (!ret) {
        out[0] = a.values[0];
        out[1] = a.values[1];
    }
    return ret;
}

/* VALUE...: pid and bytes of each process. */
struct process {
    unsigned pid;
    u64 bytes;
    unsigned gpu_instance, compute_instance;
};
static int processes(device_t handle, const char *key, unsigned *number, struct process *out) {
    struct answer a;
    int ret = ask_device(handle, key, &a);
    if (ret)
        return ret;
    unsigned room = *number;
    *number = a.count / 2;
    if (*number && (!out || room < *number))
        return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *number; i++)
        out[i] = (struct process){(unsigned)a.values[2 * i], a.values[2 * i + 1], ~0u, ~0u};
    return SUCCESS;
}
#define PROCESSES(NAME, VERSION)                                                                   \
    API int NAME##VERSION(device_t handle, unsigned *number, struct process *out) {                \
        return processes(handle, #NAME, number, out);                                              \
    }
PROCESSES(nvmlDeviceGetComputeRunningProcesses, _v2)
PROCESSES(nvmlDeviceGetComputeRunningProcesses, _v3)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, _v2)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, _v3)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, _v2)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, _v3)

/* VALUE...: pid, time in microseconds, and percent of SM, memory, encoder, decoder */
struct process_sample {
    unsigned pid;
    u64 time;
    unsigned sm, memory, encoder, decoder;
};
API int nvmlDeviceGetProcessUtilization(device_t handle, struct process_sample *out,
                                        unsigned *number, u64 since) {
    struct answer a;
    (void)since;
    int ret = ask_device(handle, "nvmlDeviceGetProcessUtilization", &a);
    if (ret)
        return ret;
    unsigned room = *number;
    *number = a.count / 6;
    if (!*number)
        return NOT_FOUND;
    if (!out || room < *number)
        return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *number; i++) {
        const u64 *v = a.values + 6 * i;
        out[i] = (struct process_sample){(unsigned)v[0], v[1],           (unsigned)v[2],
                                         (unsigned)v[3], (unsigned)v[4], (unsigned)v[5]};
    }
    return SUCCESS;
}

/* VALUE...: nvmlValueType_t, value */
struct field {
    unsigned id, scope;
    long long time, latency;
    unsigned type;
    int ret;
    u64 value;
};
API int nvmlDeviceGetFieldValues(device_t handle, int number, struct field *fields) {
    struct answer a;
    if (index_of(handle) == DEVICES)
        return INVALID_ARGUMENT;
    for (int i = 0; i < number; i++) {
        char key[96];
        snprintf(key, sizeof key, "nvmlDeviceGetFieldValues.%u", fields[i].id);
        fields[i].ret = ask_device(handle, key, &a);
        fields[i].type = (unsigned)a.values[0];
        fields[i].value = a.values[1];
    }
    return SUCCESS;
}

/* Events --------------------------------------------------------------------------------------- */

/* The line of an event is "DEVICE event.N 0 0 TYPE DATA", N from 0 for each device. A set gets those
 * that are written after the device was registered in it. */
struct event {
    device_t device;
    u64 type, data;
    unsigned gpu_instance, compute_instance;
};
struct event_set {
    u64 types[DEVICES];
    unsigned next[DEVICES];
};

static int event(int index, unsigned number, struct answer *a) {
    char key[32];
    snprintf(key, sizeof key, "event.%u", number);
    pthread_mutex_lock(&lock);
    const char *rest = line(state(), index, key);
    double hang;
    memset(a, 0, sizeof *a);
    if (rest)
        parse(rest, a, &hang);
    pthread_mutex_unlock(&lock);
    return rest != NULL;
}

API int nvmlEventSetCreate(struct event_set **out) {
    struct answer a;
    int ret = ask(MACHINE, "nvmlEventSetCreate", &a);
    if (!ret)
        *out = calloc(1, sizeof **out);
    return ret;
}
API int nvmlEventSetFree(struct event_set *set) {
    free(set);
    return SUCCESS;
}
API int nvmlDeviceRegisterEvents(device_t handle, u64 types, struct event_set *set) {
    struct answer a;
    int ret = ask_device(handle, "nvmlDeviceRegisterEvents", &a);
    if (ret)
        return ret;
    int index = index_of(handle);
    set->types[index] = types;
    while (event(index, set->next[index], &a))
        set->next[index]++;
    return SUCCESS;
}
API int nvmlEventSetWait_v2(struct event_set *set, struct event *out, unsigned milliseconds) {
    struct answer a;
    for (unsigned waited = 0;; waited += 10) {
        for (int index = 0; index < DEVICES; index++)
            while (set->types[index] && event(index, set->next[index], &a)) {
                set->next[index]++;
                if (!(a.values[0] & set->types[index]))
                    continue;
                *out = (struct event){device + index, a.values[0], a.values[1], ~0u, ~0u};
                return SUCCESS;
            }
        if (waited >= milliseconds)
            return TIMEOUT;
        wait_seconds(0.01);
    }
}
