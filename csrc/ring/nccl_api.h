// The part of NCCL that a channel needs, declared by hand and found with dlopen: nothing of NCCL is needed to build.
// tests/check_abi.cc compares every value below with nccl.h where that header is found.
#pragma once

#include <climits>
#include <cstddef>
#include <string>

namespace everface::ring {

using NcclComm = struct NcclCommOpaque*;
using CudaStream = struct CudaStreamOpaque*;

enum NcclResult : int { kNcclSuccess = 0, kNcclRemoteError = 6, kNcclInProgress = 7 };
enum NcclType : int { kNcclUint8 = 1 };

struct NcclUniqueId {
  char bytes[128];
};

// ncclConfig_t as of NCCL 2.17. A newer library reads `size` bytes of it and uses its defaults for the rest.
struct NcclConfig {
  std::size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 21700;
  int blocking = INT_MIN;  // INT_MIN: not set
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
};

struct Nccl {
  static Nccl load(const std::string& path);  // throws Missing

  std::string describe(NcclResult result) const { return get_error_string(result); }

  NcclResult (*get_version)(int*);
  NcclResult (*get_unique_id)(NcclUniqueId*);
  NcclResult (*comm_init_rank_config)(NcclComm*, int ranks, NcclUniqueId, int rank, NcclConfig*);
  NcclResult (*comm_get_async_error)(NcclComm, NcclResult*);
  NcclResult (*comm_abort)(NcclComm);
  NcclResult (*comm_finalize)(NcclComm);
  NcclResult (*comm_destroy)(NcclComm);
  NcclResult (*send)(const void*, std::size_t count, NcclType, int peer, NcclComm, CudaStream);
  NcclResult (*recv)(void*, std::size_t count, NcclType, int peer, NcclComm, CudaStream);
  const char* (*get_error_string)(NcclResult);
};

}  // namespace everface::ring
