// The part of the CUDA runtime that a channel needs, declared by hand and found with dlopen: one build serves machines with and
// without CUDA. tests/check_abi.cc compares every value below with cuda_runtime_api.h where that header is found.
#pragma once

#include <cstddef>
#include <string>

#include "nccl_api.h"

namespace everface::ring {

using CudaEvent = struct CudaEventOpaque*;

enum CudaResult : int { kCudaSuccess = 0, kCudaNotReady = 600 };
enum CudaFlag : unsigned { kCudaStreamNonBlocking = 1, kCudaEventDisableTiming = 2 };
enum CudaCopy : int { kCudaCopyDefault = 4 };  // the direction follows from the two addresses
enum CudaCapture : int { kCudaCaptureRelaxed = 2 };

struct Cuda {
  static Cuda load(const std::string& path);  // throws Missing

  void check(CudaResult result, const char* what) const;  // throws std::runtime_error

  const char* (*get_error_string)(CudaResult);
  CudaResult (*get_device)(int*);
  CudaResult (*set_device)(int);
  CudaResult (*get_stream_priority_range)(int* least, int* greatest);
  CudaResult (*stream_create)(CudaStream*, unsigned flags, int priority);
  CudaResult (*stream_destroy)(CudaStream);
  CudaResult (*stream_query)(CudaStream);
  CudaResult (*stream_wait_event)(CudaStream, CudaEvent, unsigned flags);
  CudaResult (*event_create)(CudaEvent*, unsigned flags);
  CudaResult (*event_destroy)(CudaEvent);
  CudaResult (*event_record)(CudaEvent, CudaStream);
  CudaResult (*event_query)(CudaEvent);
  CudaResult (*memcpy_async)(void* to, const void* from, std::size_t bytes, CudaCopy, CudaStream);
  CudaResult (*exchange_capture_mode)(CudaCapture*);
};

// Makes `device` current in this thread for a scope.
class OnDevice {
 public:
  OnDevice(const Cuda& cuda, int device);
  ~OnDevice() { cuda_.set_device(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  const Cuda& cuda_;
  int before_ = 0;
};

}  // namespace everface::ring
