// Stand-ins for the libraries that ONNX Runtime's CUDA provider needs, on a machine that has no GPU.
//
// They look like an H100 with CUDA 13. Memory is real, and copies are made, but kernels are only written down: what they
// would have computed is zero or whatever the memory held. A launch that an H100 would refuse is refused here, too.
// All functions that are not below do nothing, succeed, and are written down as well (`stubs_of` in `build.py`).

#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

constexpr size_t kMemory = 80ull << 30;
constexpr int kProcessors = 132, kMostThreads = 1024, kMostShared = 232448, kMostBlocksAside = 65535;

std::mutex mutex;
std::map<const void*, std::string> names;     // of kernels, by the function that starts them on the host
std::map<const char*, size_t> allocated;      // on the device
std::string said;
thread_local cudaError_t last = cudaSuccess;

struct Call {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Call> calls;

void write_down(const std::string& line) {
  std::lock_guard<std::mutex> guard(mutex);
  said += line + "\n";
}

cudaError_t failed(cudaError_t error) {
  last = error;
  return error;
}

std::string name_of(const void* function) {
  std::lock_guard<std::mutex> guard(mutex);
  auto found = names.find(function);
  return found == names.end() ? "unknown kernel" : found->second;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block) {
  uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (!threads || !blocks || threads > kMostThreads || block.z > 64 || grid.x > 0x7fffffffu ||
      grid.y > kMostBlocksAside || grid.z > kMostBlocksAside)
    return failed(cudaErrorInvalidConfiguration);
  write_down("kernel " + name_of(function));
  return cudaSuccess;
}

template <typename T>
cudaError_t allocate(T** pointer, size_t size) {
  *pointer = static_cast<T*>(calloc(1, size ? size : 1));  // pages that nobody writes to take no memory
  if (!*pointer) return failed(cudaErrorMemoryAllocation);
  std::lock_guard<std::mutex> guard(mutex);
  allocated[reinterpret_cast<const char*>(*pointer)] = size;
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  {
    std::lock_guard<std::mutex> guard(mutex);
    allocated.erase(static_cast<const char*>(pointer));
  }
  free(pointer);
  return cudaSuccess;
}

bool is_on_device(const void* pointer) {
  std::lock_guard<std::mutex> guard(mutex);
  auto next = allocated.upper_bound(static_cast<const char*>(pointer));
  if (next == allocated.begin()) return false;
  --next;
  return static_cast<const char*>(pointer) < next->first + next->second;
}

cudaError_t copy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  static const char* const kinds[] = {"host to host", "host to device", "device to host", "device to device", "default"};
  write_down(std::string("copy ") + kinds[kind] + " " + std::to_string(size));
  memmove(to, from, size);
  return cudaSuccess;
}

template <typename T>
void handle(T* made) {
  *made = reinterpret_cast<T>(calloc(1, 256));
}

int attribute(cudaDeviceAttr wanted) {
  switch (wanted) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return kMostThreads;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return kMostBlocksAside;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return kMostShared;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 233472;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMultiProcessorCount: return kProcessors;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrL2CacheSize: return 50 << 20;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrComputeCapabilityMinor: return 0;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrCooperativeLaunch: return 1;
    default: return 0;
  }
}

}  // namespace

extern "C" {

// What the tests read: everything that was written down since the last time.
const char* stand_in_take() {
  static std::string taken;
  std::lock_guard<std::mutex> guard(mutex);
  taken.swap(said);
  said.clear();
  return taken.c_str();
}

void stand_in_unknown(const char* name) { write_down(std::string("call ") + name); }

// Registration of kernels, which happens when the provider's library is loaded.

void** __cudaRegisterFatBinary(void*) { return new void*; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*, int*) {
  int status = 0;
  char* readable = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::lock_guard<std::mutex> guard(mutex);
  names[function] = status == 0 && readable ? readable : name;
  free(readable);
}

// Launches.

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  calls.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (calls.empty()) return failed(cudaErrorUnknown);
  Call call = calls.back();
  calls.pop_back();
  *grid = call.grid, *block = call.block, *shared = call.shared;
  *static_cast<cudaStream_t*>(stream) = call.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t, cudaStream_t) {
  return launch(function, grid, block);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t, cudaStream_t) {
  return launch(kernel, grid, block);
}

cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void**, size_t, cudaStream_t) {
  return launch(function, grid, block);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
  return launch(function, config->gridDim, config->blockDim);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = kMostThreads;
  attributes->numRegs = 64;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = 49152;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

// The device.

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr wanted, int) { return *value = attribute(wanted), cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  strcpy(properties->name, "stand-in for an H100");
  properties->totalGlobalMem = kMemory;
  properties->major = attribute(cudaDevAttrComputeCapabilityMajor);
  properties->minor = attribute(cudaDevAttrComputeCapabilityMinor);
  properties->warpSize = attribute(cudaDevAttrWarpSize);
  properties->multiProcessorCount = kProcessors;
  properties->maxThreadsPerBlock = kMostThreads;
  properties->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  properties->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  properties->sharedMemPerBlockOptin = kMostShared;
  properties->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  properties->regsPerBlock = properties->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerBlock);
  properties->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = kMostThreads;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = kMostBlocksAside;
  properties->unifiedAddressing = properties->cooperativeLaunch = properties->memoryPoolsSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  std::lock_guard<std::mutex> guard(mutex);
  size_t used = 0;
  for (const auto& [pointer, size] : allocated) used += size;
  *total = kMemory;
  *free_bytes = used < kMemory ? kMemory - used : 0;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  static const auto nothing = +[]() { return 0; };
  write_down(std::string("call ") + name);
  *function = reinterpret_cast<void*>(nothing);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// Errors.

cudaError_t cudaGetLastError() {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration" : "an error of a stand-in";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "an error of a stand-in";
}

// Memory.

cudaError_t cudaMalloc(void** pointer, size_t size) { return allocate(pointer, size); }
cudaError_t cudaFree(void* pointer) { return release(pointer); }
cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t size, cudaMemPool_t, cudaStream_t) {
  return allocate(pointer, size);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return release(pointer); }
cudaError_t cudaMallocHost(void** pointer, size_t size) { return *pointer = calloc(1, size), cudaSuccess; }
cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) { return *pointer = calloc(1, size), cudaSuccess; }
cudaError_t cudaFreeHost(void* pointer) { return free(pointer), cudaSuccess; }

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) { return copy(to, from, size, kind); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
  return copy(to, from, size, kind);
}
cudaError_t cudaMemcpy2DAsync(
    void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
  write_down("copy in two dimensions " + std::to_string(width * height));
  for (size_t row = 0; row < height; ++row)
    memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t size) { return memset(to, value, size), cudaSuccess; }
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  write_down("set " + std::to_string(size));
  return memset(to, value, size), cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  attributes->type = is_on_device(pointer) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->devicePointer = attributes->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}

// Streams, events and graphs: all is done at once. What is captured is only written down, as if it were run.

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return handle(stream), cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return handle(stream), cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return handle(event), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return handle(event), cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) { return *milliseconds = 1, cudaSuccess; }
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) { return handle(pool), cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) { return handle(graph), cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t, unsigned long long) {
  return handle(executable), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return write_down("graph"), cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* argument) {
  return function(argument), cudaSuccess;
}

// cuBLAS: a product is one launch.

int cublasCreate_v2(void** made) { return handle(made), 0; }
int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }
const char* cublasGetStatusName(int) { return "an error of a stand-in"; }
const char* cublasGetStatusString(int) { return "an error of a stand-in"; }
int cublasGemmEx() { return write_down("kernel cublasGemmEx"), 0; }
int cublasGemmStridedBatchedEx() { return write_down("kernel cublasGemmStridedBatchedEx"), 0; }
int cublasGemmBatchedEx() { return write_down("kernel cublasGemmBatchedEx"), 0; }
int cublasSgemm_v2() { return write_down("kernel cublasSgemm"), 0; }
int cublasSgemmStridedBatched() { return write_down("kernel cublasSgemmStridedBatched"), 0; }

int cublasLtCreate(void** made) { return handle(made), 0; }
int cublasLtMatmulDescCreate(void** made, int, int) { return handle(made), 0; }
int cublasLtMatrixLayoutCreate(void** made, int, uint64_t, uint64_t, int64_t) { return handle(made), 0; }
int cublasLtMatmulPreferenceCreate(void** made) { return handle(made), 0; }
int cublasLtMatmul() { return write_down("kernel cublasLtMatmul"), 0; }
int cublasLtMatmulAlgoGetHeuristic(
    void*, void*, void*, void*, void*, void*, void*, int, void* results, int* returned) {
  memset(results, 0, 64);  // the algorithm, which is not looked into
  return *returned = 1, 0;
}

// cuDNN, by numbers of its header.

size_t cudnnGetVersion() { return 91300; }
size_t cudnnGetCudartVersion() { return 13000; }
const char* cudnnGetErrorString(int) { return "an error of a stand-in"; }
void cudnnGetLastErrorString(char* message, size_t size) {
  if (size) *message = 0;
}
int cudnnCreate(void** made) { return handle(made), 0; }

// Descriptors are only made: an engine is offered for every graph, it needs no memory, and its result is not computed.
int cudnnBackendCreateDescriptor(int, void** made) { return handle(made), 0; }
int cudnnBackendDestroyDescriptor(void* descriptor) { return free(descriptor), 0; }
int cudnnBackendSetAttribute(void*, int, int, int64_t, const void*) { return 0; }
int cudnnBackendFinalize(void*) { return 0; }

int cudnnBackendGetAttribute(void*, int name, int, int64_t requested, int64_t* count, void* elements) {
  constexpr int kHeuristicResults = 202, kEngineOfConfig = 300, kWorkspaceOfConfig = 303, kSharedOfConfig = 304,
                kWorkspaceOfPlan = 402, kIndexOfEngine = 1301;
  bool is_number = name == kWorkspaceOfConfig || name == kWorkspaceOfPlan || name == kIndexOfEngine;
  bool is_found = is_number || name == kSharedOfConfig || name == kHeuristicResults || name == kEngineOfConfig;
  int64_t found = is_found ? 1 : 0;
  if (is_number && requested && elements) *static_cast<int64_t*>(elements) = 0;
  if (name == kSharedOfConfig && requested && elements) *static_cast<int32_t*>(elements) = 0;
  if (count) *count = found;
  return 0;
}

int cudnnBackendExecute(void*, void*, void*) { return write_down("kernel cudnnBackendExecute"), 0; }
}
