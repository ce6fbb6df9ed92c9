// A backend of ggml whose devices have the memory and the rules of CUDA devices and compute nothing.
//
// llama.cpp places weights, KV cache and compute buffers on such a device as it does on a GPU, from
// the same answers: alignment, sizes of tensors, supported operations, what is offloaded. The
// buffers are address space that is never touched, so models larger than this machine's memory can
// be placed. What is computed is meaningless.
//
//   STANDIN_DEVICES="P4000:61:8113,GTX 1060:61:6078"   name, capability, free MiB
//
// Each buffer is written to standard error: `standin: DEVICE KIND BYTES`.
#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

namespace {

const int64_t ROW = 512;      // quantised rows are padded to so many values
const int64_t KV_STRIDE = 256;
const int64_t BATCH = 32;     // from this batch on, products with weights of the host are taken

struct Device {
    std::string name, product;
    int capability;
    size_t bytes;
    ggml_backend_buffer_type type, host;
    ggml_backend_device device;
};

std::vector<Device> devices;
ggml_guid guid = { 0x73, 0x74, 0x61, 0x6e, 0x64, 0x69, 0x6e, 0, 0, 0, 0, 0, 0, 0, 0, 1 };

Device & of(ggml_backend_buffer_type_t type) { return *(Device *) type->context; }
Device & of(ggml_backend_dev_t device) { return *(Device *) device->context; }

// Buffers ----------------------------------------------------------------------------------------

const char * usage(ggml_backend_buffer_t buffer) {
    return buffer->usage == GGML_BACKEND_BUFFER_USAGE_WEIGHTS ? "weights" :
           buffer->usage == GGML_BACKEND_BUFFER_USAGE_COMPUTE ? "compute" : "other";
}

void buffer_free(ggml_backend_buffer_t buffer) {
    fprintf(stderr, "standin: %s %s %zu\n", of(buffer->buft).name.c_str(), usage(buffer), buffer->size);
    if (buffer->context) {
        munmap(buffer->context, buffer->size);
    }
}
void * buffer_base(ggml_backend_buffer_t buffer) { return buffer->context; }
void buffer_memset(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {}
void buffer_set(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {}
void buffer_get(ggml_backend_buffer_t, const ggml_tensor *, void * data, size_t, size_t size) {
    memset(data, 0, size);
}
bool buffer_copy(ggml_backend_buffer_t, const ggml_tensor *, ggml_tensor *) { return true; }
void buffer_clear(ggml_backend_buffer_t, uint8_t) {}

const ggml_backend_buffer_i BUFFER = {
    buffer_free, buffer_base, nullptr, buffer_memset, buffer_set, buffer_get, nullptr, nullptr,
    buffer_copy, buffer_clear, nullptr,
};

const char * type_name(ggml_backend_buffer_type_t type) { return of(type).name.c_str(); }

ggml_backend_buffer_t type_alloc(ggml_backend_buffer_type_t type, size_t size) {
    void * base = nullptr;
    if (size) {
        base = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) {
            return nullptr;
        }
    }
    return ggml_backend_buffer_init(type, BUFFER, base, size);
}
size_t type_alignment(ggml_backend_buffer_type_t) { return 128; }

bool row_of_kernels(const ggml_tensor * node) {
    const ggml_tensor * q = node->src[0], * k = node->src[1];
    return q->ne[0] <= 256 && q->ne[0] % 64 == 0 && q->ne[0] != 192 && k->ne[1] % KV_STRIDE == 0;
}

// Whether flash attention makes copies of K and V in f16: its kernel for batches below 7.5 does.
size_t attention_size(const ggml_tensor * node) {
    const ggml_tensor * k = node->src[1], * v = node->src[2];
    const bool quantised = ggml_is_quantized(k->type) || ggml_is_quantized(v->type);
    size_t size = ggml_nbytes(node);
    if (quantised && node->src[0]->ne[1] <= 2 && row_of_kernels(node)) {
        return size;
    }
    if (k->type != GGML_TYPE_F16) {
        size = GGML_PAD(size, 128) + ggml_nelements(k) * 2;
    }
    if (v->type != GGML_TYPE_F16 && !(v->view_src && v->view_src == k->view_src)) {
        size = GGML_PAD(size, 128) + ggml_nelements(v) * 2;
    }
    return size;
}

size_t type_size(ggml_backend_buffer_type_t, const ggml_tensor * node) {
    size_t size = node->op == GGML_OP_FLASH_ATTN_EXT ? attention_size(node) : ggml_nbytes(node);
    if (ggml_is_quantized(node->type) && node->ne[0] % ROW) {
        size += ggml_row_size(node->type, ROW - node->ne[0] % ROW);
    }
    return size;
}

const ggml_backend_buffer_type_i TYPE = {
    type_name, type_alloc, type_alignment, nullptr, type_size, nullptr,
};

const char * host_name(ggml_backend_buffer_type_t) { return "CUDA_Host"; }
void host_free(ggml_backend_buffer_t buffer) {
    fprintf(stderr, "standin: CUDA_Host %s %zu\n", usage(buffer), buffer->size);
    if (buffer->context) {
        munmap(buffer->context, buffer->size);
    }
}
ggml_backend_buffer_t host_alloc(ggml_backend_buffer_type_t type, size_t size) {
    void * base = mmap(nullptr, std::max<size_t>(size, 1), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return nullptr;
    }
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(base, size);
    buffer->buft = type;
    buffer->iface.free_buffer = host_free;
    return buffer;
}

// The backend ------------------------------------------------------------------------------------

const char * backend_name(ggml_backend_t backend) { return of(backend->device).name.c_str(); }
void backend_free(ggml_backend_t backend) { delete backend; }
void backend_synchronize(ggml_backend_t) {}
ggml_status backend_compute(ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_SUCCESS; }
void backend_event(ggml_backend_t, ggml_backend_event_t) {}

// Devices ----------------------------------------------------------------------------------------

const char * device_name(ggml_backend_dev_t device) { return of(device).name.c_str(); }
const char * device_product(ggml_backend_dev_t device) { return of(device).product.c_str(); }
void device_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    *free = *total = of(device).bytes;
}
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    props->name = device_name(device);
    props->description = device_product(device);
    props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
    props->device_id = nullptr;
    device_memory(device, &props->memory_free, &props->memory_total);
    props->caps = { true, true, false, true, true };
}
ggml_backend_t device_init(ggml_backend_dev_t device, const char *) {
    ggml_backend_i table = {};
    table.get_name = backend_name;
    table.free = backend_free;
    table.synchronize = backend_synchronize;
    table.graph_compute = backend_compute;
    table.event_record = backend_event;
    table.event_wait = backend_event;
    return new ggml_backend{ &guid, table, device, nullptr };
}
ggml_backend_buffer_type_t device_buffer(ggml_backend_dev_t device) { return &of(device).type; }
ggml_backend_buffer_type_t device_host(ggml_backend_dev_t device) { return &of(device).host; }

bool attention(const ggml_tensor * node) {
    const ggml_tensor * q = node->src[0], * k = node->src[1], * v = node->src[2], * mask = node->src[3];
    const int64_t ratio = q->ne[2] / k->ne[2];
    const bool grouped = ratio >= 2 && mask && k->ne[1] % KV_STRIDE == 0;
    switch (k->ne[0]) {
        case 40: case 64: case 72: case 80: case 96: case 112: case 128: case 256:
            return v->ne[0] == k->ne[0];
        case 192:
            return v->ne[0] == 128 && grouped && ratio % 8 == 0;
        case 512:
            return v->ne[0] == k->ne[0] && grouped;
        case 576:
            return v->ne[0] == 512 && grouped;
        default:
            return false;
    }
}

bool device_supports(ggml_backend_dev_t device, const ggml_tensor * op) {
    for (const ggml_tensor * src : op->src) {
        if (src && src->buffer && src->buffer->buft->iface.get_name == type_name &&
            src->buffer->buft->device != device) {
            return false;
        }
    }
    if (op->op == GGML_OP_FLASH_ATTN_EXT) {
        return attention(op);
    }
    return true;
}
bool device_supports_buffer(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    return type->iface.get_name == type_name && type->device == device;
}
bool device_offload(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS:
            return false;
        case GGML_OP_MUL_MAT:
            return op->ne[1] >= BATCH;
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:
            return op->ne[2] >= BATCH;
        default:
            return ggml_nrows(op) >= BATCH;
    }
}
ggml_backend_event_t event_new(ggml_backend_dev_t device) { return new ggml_backend_event{ device, nullptr }; }
void event_free(ggml_backend_dev_t, ggml_backend_event_t event) { delete event; }
void event_synchronize(ggml_backend_dev_t, ggml_backend_event_t) {}

const ggml_backend_device_i DEVICE = {
    device_name, device_product, device_memory, device_type, device_props, device_init,
    device_buffer, device_host, nullptr, device_supports, device_supports_buffer, device_offload,
    event_new, event_free, event_synchronize,
};

// Registration -----------------------------------------------------------------------------------

const char * registry_name(ggml_backend_reg_t) { return "CUDA"; }
size_t registry_count(ggml_backend_reg_t) { return devices.size(); }
ggml_backend_dev_t registry_device(ggml_backend_reg_t, size_t at) { return &devices[at].device; }
bool avoid_flash(ggml_backend_dev_t device) { return of(device).capability < 50; }
void * registry_address(ggml_backend_reg_t, const char * name) {
    return strcmp(name, "ggml_backend_dev_avoid_flash_attn") ? nullptr : (void *) avoid_flash;
}

ggml_backend_reg registry = {
    GGML_BACKEND_API_VERSION,
    { registry_name, registry_count, registry_device, registry_address },
    nullptr,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    std::stringstream given(getenv("STANDIN_DEVICES") ? getenv("STANDIN_DEVICES") : "");
    std::string one;
    while (std::getline(given, one, ',')) {
        const size_t first = one.find(':'), second = one.find(':', first + 1);
        Device device;
        device.name = "CUDA" + std::to_string(devices.size());
        device.product = one.substr(0, first);
        device.capability = atoi(one.substr(first + 1, second - first - 1).c_str());
        device.bytes = (size_t) atoll(one.substr(second + 1).c_str()) << 20;
        devices.push_back(device);
    }
    for (Device & device : devices) {
        device.device = { DEVICE, &registry, &device };
        device.type = { TYPE, &device.device, &device };
        ggml_backend_buffer_type_i host = ggml_backend_cpu_buffer_type()->iface;
        host.get_name = host_name;
        host.alloc_buffer = host_alloc;
        device.host = { host, &device.device, &device };
    }
    return &registry;
}
