// Compiled, never run: checks the declarations in ring/ against the vendors' headers, where those are found.
#include "../client/cuda.h"
#include "../ring/cuda_api.h"
#include "../ring/nccl_api.h"

#include <type_traits>

#if __has_include(<cuda_runtime_api.h>)
#include <cuda_runtime_api.h>
static_assert(everface::ring::kCudaSuccess == static_cast<int>(cudaSuccess));
static_assert(everface::ring::kCudaNotReady == static_cast<int>(cudaErrorNotReady));
static_assert(everface::ring::kCudaStreamNonBlocking == cudaStreamNonBlocking);
static_assert(everface::ring::kCudaEventDisableTiming == cudaEventDisableTiming);
static_assert(everface::ring::kCudaCopyDefault == static_cast<int>(cudaMemcpyDefault));
static_assert(everface::ring::kCudaCaptureRelaxed == static_cast<int>(cudaStreamCaptureModeRelaxed));
static_assert(std::is_same_v<decltype(cudaStreamWaitEvent), cudaError_t(cudaStream_t, cudaEvent_t, unsigned)>);
static_assert(std::is_same_v<decltype(cudaIpcOpenMemHandle), cudaError_t(void**, cudaIpcMemHandle_t, unsigned)>);
static_assert(std::is_same_v<decltype(cudaIpcCloseMemHandle), cudaError_t(void*)>);
static_assert(std::is_same_v<decltype(cudaDeviceGetPCIBusId), cudaError_t(char*, int, int)>);
static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(everface::client::CudaIpcHandle) && alignof(cudaIpcMemHandle_t) == 1);
static_assert(everface::client::kCudaIpcLazyPeerAccess == cudaIpcMemLazyEnablePeerAccess);
static_assert(sizeof(cudaError_t) == sizeof(everface::ring::CudaResult));
#endif

#if __has_include(<nccl.h>)
#include <nccl.h>

#include <cstddef>
static_assert(everface::ring::kNcclSuccess == static_cast<int>(ncclSuccess));
static_assert(everface::ring::kNcclRemoteError == static_cast<int>(ncclRemoteError));
static_assert(everface::ring::kNcclInProgress == static_cast<int>(ncclInProgress));
static_assert(everface::ring::kNcclUint8 == static_cast<int>(ncclUint8));
static_assert(sizeof(everface::ring::NcclUniqueId) == sizeof(ncclUniqueId));
static_assert(offsetof(everface::ring::NcclConfig, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(offsetof(everface::ring::NcclConfig, max_ctas) == offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(everface::ring::NcclConfig, net_name) == offsetof(ncclConfig_t, netName));
#endif
