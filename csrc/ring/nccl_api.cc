#include "nccl_api.h"

#include "library.h"

namespace everface::ring {

Nccl Nccl::load(const std::string& path) {
  const Library library(path);
  Nccl nccl{};
  library.find("ncclGetVersion", nccl.get_version);
  library.find("ncclGetUniqueId", nccl.get_unique_id);
  library.find("ncclCommInitRankConfig", nccl.comm_init_rank_config);
  library.find("ncclCommGetAsyncError", nccl.comm_get_async_error);
  library.find("ncclCommAbort", nccl.comm_abort);
  library.find("ncclCommFinalize", nccl.comm_finalize);
  library.find("ncclCommDestroy", nccl.comm_destroy);
  library.find("ncclSend", nccl.send);
  library.find("ncclRecv", nccl.recv);
  library.find("ncclGetErrorString", nccl.get_error_string);
  return nccl;
}

}  // namespace everface::ring
