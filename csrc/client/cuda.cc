#include "cuda.h"

#include <cstring>
#include <dlfcn.h>
#include <unistd.h>

namespace everface::client {
namespace {

// tests/check_abi.cc compares these with cuda_runtime_api.h where that header is found.
struct Cuda {
  const char* (*get_error_string)(int);
  int (*get_device)(int*);
  int (*set_device)(int);
  int (*get_bus_id)(char*, int, int);
  int (*ipc_open)(void**, CudaIpcHandle, unsigned);
  int (*ipc_close)(void*);
  bool whole = false;
};

// One that the program has loaded already, else one that the system's loader finds. Kept until the process ends.
Cuda load() {
  Cuda cuda{};
  void* library = nullptr;
  for (const int how : {RTLD_LAZY | RTLD_NOLOAD, RTLD_LAZY | RTLD_LOCAL})
    for (const char* name : {"libcudart.so.13", "libcudart.so.12"})
      if (!library) library = ::dlopen(name, how);
  if (!library) return cuda;
  cuda.whole = true;
  const auto find = [&](const char* name, auto& function) {
    void* found = ::dlsym(library, name);
    std::memcpy(&function, &found, sizeof found);
    if (!found) cuda.whole = false;
  };
  find("cudaGetErrorString", cuda.get_error_string);
  find("cudaGetDevice", cuda.get_device);
  find("cudaSetDevice", cuda.set_device);
  find("cudaDeviceGetPCIBusId", cuda.get_bus_id);
  find("cudaIpcOpenMemHandle", cuda.ipc_open);
  find("cudaIpcCloseMemHandle", cuda.ipc_close);
  return cuda;
}

const Cuda& cuda() {
  static const Cuda loaded = load();
  return loaded;
}

// Makes a device current in this thread for a scope.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    known_ = cuda().get_device(&before_) == 0;
    result_ = cuda().set_device(device);
  }
  ~OnDevice() {
    if (known_) cuda().set_device(before_);
  }
  int result() const { return result_; }

 private:
  int before_ = 0, result_ = 0;
  bool known_ = false;
};

}  // namespace

CudaMemory::~CudaMemory() {
  {
    const OnDevice on(device_);
    cuda().ipc_close(base_);
  }
  ::close(descriptor_);
}

Error name_gpu(int device, std::string& bus_id) {
  if (!cuda().whole)
    return {EF_UNAVAILABLE, "frames on a GPU need libcudart.so.13 or .12, and the loader finds none: put it on LD_LIBRARY_PATH, or set config.cuda_device to -1"};
  char name[32] = "";
  if (const int failed = cuda().get_bus_id(name, sizeof name, device))
    return {EF_UNAVAILABLE, "CUDA device " + std::to_string(device) + " cannot be used (" + cuda().get_error_string(failed) +
                                "): choose one that there is, or set config.cuda_device to -1"};
  bus_id = name;
  return {};
}

Error open_gpu_memory(std::string_view handle, int device, int descriptor, std::unique_ptr<CudaMemory>& memory) {
  CudaIpcHandle whole;
  if (handle.size() != sizeof whole.bytes) {
    ::close(descriptor);
    return {EF_VERSION, "the engine gives no frames on a GPU: use an engine of this library's version, or set config.cuda_device to -1"};
  }
  std::memcpy(whole.bytes, handle.data(), sizeof whole.bytes);
  void* base = nullptr;
  int failed;
  {
    const OnDevice on(device);
    failed = on.result() ? on.result() : cuda().ipc_open(&base, whole, kCudaIpcLazyPeerAccess);
  }
  if (failed) {
    ::close(descriptor);
    return {EF_UNAVAILABLE, std::string("the engine's frames on the GPU cannot be opened (") + cuda().get_error_string(failed) +
                                "): run both in containers that allow CUDA IPC, or set config.cuda_device to -1"};
  }
  memory = std::make_unique<CudaMemory>(base, device, descriptor);
  return {};
}

}  // namespace everface::client
