/* A library that plays libnvidia-ml.so.1 for the tests, so that the real bindings run against it.
 *
 * Everything it says is chosen by environment variables, read at each call:
 *   FAKE_NVML_GPUS       number of GPUs (default 2), named and numbered from 0
 *   FAKE_NVML_NAME       name of GPU 0 (default "Fake GPU 0")
 *   FAKE_NVML_MIG        if set, GPU 0 is split into two slices, numbered 0 and 2
 *   FAKE_NVML_PROCESSES  "PID:MIB,PID:MIB" on every GPU; PID may be "self", MIB may be "unavailable"
 *   FAKE_NVML_FAIL       "function=code,function=code": these fail; code 13 is "no such function in this driver"
 *   FAKE_NVML_POWER_W    power of every GPU (default 123.456); its energy counter is that times the monotonic clock
 *   FAKE_NVML_ENERGY_MJ  the energy counter of every GPU instead, in millijoules
 *   FAKE_NVML_LOST_AFTER every question about a device fails with "GPU is lost" after that many
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

#define MIB (1024ULL * 1024ULL)
#define TOTAL (24576ULL * MIB)
#define RESERVED (512ULL * MIB)

typedef struct { int gpu; int slice; } Device; /* slice -1: the whole GPU */
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned int version, sensor; int celsius; } Temperature;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } Process;

static Device devices[16][3];

/* The code that FAKE_NVML_FAIL gives for this function, 0 for none. */
static int failure(const char *function) {
    const char *list = getenv("FAKE_NVML_FAIL");
    size_t length = strlen(function);
    while (list && *list) {
        if (strncmp(list, function, length) == 0 && list[length] == '=') return atoi(list + length + 1);
        list = strchr(list, ',');
        if (list) list++;
    }
    return SUCCESS;
}

static int device_failure(const char *function) {
    static int asked = 0;
    const char *limit = getenv("FAKE_NVML_LOST_AFTER");
    if (limit && asked++ >= atoi(limit)) return GPU_IS_LOST;
    return failure(function);
}

#define MAY_FAIL() do { int code = failure(__func__); if (code) return code; } while (0)
#define DEVICE_MAY_FAIL() do { int code = device_failure(__func__); if (code) return code; } while (0)

static int gpu_count(void) {
    const char *count = getenv("FAKE_NVML_GPUS");
    return count ? atoi(count) : 2;
}

static double power_w(void) {
    const char *watts = getenv("FAKE_NVML_POWER_W");
    return watts ? atof(watts) : 123.456;
}

static unsigned long long used(const Device *device) { return (1000ULL + 100ULL * device->gpu) * MIB; }

int nvmlInitWithFlags(unsigned int flags) { (void)flags; MAY_FAIL(); return SUCCESS; }
int nvmlInit_v2(void) { MAY_FAIL(); return SUCCESS; }
int nvmlShutdown(void) { MAY_FAIL(); return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake driver"; }

int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
    MAY_FAIL();
    snprintf(text, size, "555.42.01");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count) { MAY_FAIL(); *count = (unsigned int)gpu_count(); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device **device) {
    DEVICE_MAY_FAIL();
    if (index >= (unsigned int)gpu_count() || index >= 16) return INVALID_ARGUMENT;
    *device = &devices[index][0];
    (*device)->gpu = (int)index;
    (*device)->slice = -1;
    return SUCCESS;
}

int nvmlDeviceGetName(Device *device, char *text, unsigned int size) {
    DEVICE_MAY_FAIL();
    const char *name = getenv("FAKE_NVML_NAME");
    if (name && device->gpu == 0) snprintf(text, size, "%s", name);
    else if (device->slice >= 0) snprintf(text, size, "Fake GPU %d MIG 1g.12gb", device->gpu);
    else snprintf(text, size, "Fake GPU %d", device->gpu);
    return SUCCESS;
}

int nvmlDeviceGetUUID(Device *device, char *text, unsigned int size) {
    DEVICE_MAY_FAIL();
    snprintf(text, size, "%s-%08x-0000-4000-8000-%012x", device->slice < 0 ? "GPU" : "MIG", 0xabcdef00 + device->gpu,
             device->slice + 1);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    DEVICE_MAY_FAIL();
    memory->total = TOTAL;
    memory->used = used(device) + RESERVED;
    memory->free = TOTAL - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, Memory2 *memory) {
    DEVICE_MAY_FAIL();
    if (memory->version != (sizeof(Memory2) | (2u << 24))) return INVALID_ARGUMENT;
    memory->total = TOTAL;
    memory->reserved = RESERVED;
    memory->used = used(device);
    memory->free = TOTAL - RESERVED - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    DEVICE_MAY_FAIL();
    if (device->slice >= 0) return NOT_SUPPORTED;
    rates->gpu = 37u + (unsigned int)device->gpu;
    rates->memory = 11;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned int *milliwatts) {
    DEVICE_MAY_FAIL();
    if (device->slice >= 0) return NOT_SUPPORTED;
    *milliwatts = (unsigned int)(power_w() * 1000 + 0.5);
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    const char *fixed = getenv("FAKE_NVML_ENERGY_MJ");
    struct timespec now;
    DEVICE_MAY_FAIL();
    if (device->slice >= 0) return NOT_SUPPORTED;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (fixed) *millijoules = strtoull(fixed, NULL, 10);
    else *millijoules = (unsigned long long)(power_w() * ((double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6));
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device *device, unsigned int sensor, unsigned int *celsius) {
    DEVICE_MAY_FAIL();
    if (device->slice >= 0) return NOT_SUPPORTED;
    if (sensor != 0) return INVALID_ARGUMENT;
    *celsius = 61;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureV(Device *device, Temperature *temperature) {
    DEVICE_MAY_FAIL();
    if (device->slice >= 0) return NOT_SUPPORTED;
    if (temperature->version != (sizeof(Temperature) | (1u << 24)) || temperature->sensor != 0) return INVALID_ARGUMENT;
    temperature->celsius = 62;
    return SUCCESS;
}

static int processes(unsigned int *count, Process *out) {
    const char *list = getenv("FAKE_NVML_PROCESSES");
    unsigned int room = *count, found = 0;
    while (list && *list) {
        const char *mib = strchr(list, ':') + 1;
        if (out && found < room) {
            out[found].pid = strncmp(list, "self", 4) == 0 ? (unsigned int)getpid() : (unsigned int)atoi(list);
            out[found].used = *mib == 'u' ? ~0ULL : strtoull(mib, NULL, 10) * MIB;
            out[found].gpu_instance = out[found].compute_instance = ~0u;
        }
        found++;
        list = strchr(mib, ',');
        if (list) list++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned int *count, Process *out) {
    (void)device;
    DEVICE_MAY_FAIL();
    return processes(count, out);
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned int *count, Process *out) {
    (void)device;
    DEVICE_MAY_FAIL();
    return processes(count, out);
}

int nvmlDeviceGetMigMode(Device *device, unsigned int *current, unsigned int *pending) {
    DEVICE_MAY_FAIL();
    if (!getenv("FAKE_NVML_MIG")) return NOT_SUPPORTED;
    *current = *pending = device->gpu == 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned int *count) {
    (void)device;
    DEVICE_MAY_FAIL();
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned int index, Device **slice) {
    DEVICE_MAY_FAIL();
    if (index != 0 && index != 2) return NOT_FOUND;
    *slice = &devices[device->gpu][1 + index / 2];
    (*slice)->gpu = device->gpu;
    (*slice)->slice = (int)index;
    return SUCCESS;
}
