// Frames on a GPU: memory of the engine's that this process opens too. The CUDA runtime is found with dlopen when a session asks for it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "error.h"

namespace everface::client {

constexpr unsigned kCudaIpcLazyPeerAccess = 1;
struct CudaIpcHandle {
  char bytes[64];
};

// Closed with the object, and then the descriptor, which tells the engine that it can free the memory.
class CudaMemory {
 public:
  CudaMemory(void* base, int device, int descriptor) : base_(base), device_(device), descriptor_(descriptor) {}
  ~CudaMemory();
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;
  const uint8_t* base() const { return static_cast<const uint8_t*>(base_); }

 private:
  void* base_;
  int device_, descriptor_;
};

// The PCI bus id of a device, as CUDA counts in this process: another process may count in another way.
Error name_gpu(int device, std::string& bus_id);
// Takes the descriptor over, whatever comes of it.
Error open_gpu_memory(std::string_view handle, int device, int descriptor, std::unique_ptr<CudaMemory>& memory);

}  // namespace everface::client
