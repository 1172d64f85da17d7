#include "cuda_api.h"

#include <stdexcept>

#include "library.h"

namespace everface::ring {

Cuda Cuda::load(const std::string& path) {
  const Library library(path);
  Cuda cuda{};
  library.find("cudaGetErrorString", cuda.get_error_string);
  library.find("cudaGetDevice", cuda.get_device);
  library.find("cudaSetDevice", cuda.set_device);
  library.find("cudaDeviceGetStreamPriorityRange", cuda.get_stream_priority_range);
  library.find("cudaStreamCreateWithPriority", cuda.stream_create);
  library.find("cudaStreamDestroy", cuda.stream_destroy);
  library.find("cudaStreamQuery", cuda.stream_query);
  library.find("cudaStreamWaitEvent", cuda.stream_wait_event);
  library.find("cudaEventCreateWithFlags", cuda.event_create);
  library.find("cudaEventDestroy", cuda.event_destroy);
  library.find("cudaEventRecord", cuda.event_record);
  library.find("cudaEventQuery", cuda.event_query);
  library.find("cudaMemcpyAsync", cuda.memcpy_async);
  library.find("cudaThreadExchangeStreamCaptureMode", cuda.exchange_capture_mode);
  return cuda;
}

void Cuda::check(CudaResult result, const char* what) const {
  if (result != kCudaSuccess) throw std::runtime_error(std::string(what) + ": " + get_error_string(result));
}

OnDevice::OnDevice(const Cuda& cuda, int device) : cuda_(cuda) {
  cuda.check(cuda.get_device(&before_), "the CUDA device cannot be asked for");
  cuda.check(cuda.set_device(device), "the CUDA device cannot be used");
}

}  // namespace everface::ring
