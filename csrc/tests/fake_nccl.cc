// An NCCL without a device: two ranks, in one process or in two, pass messages through a segment of shared memory whose name is the
// unique id. It keeps what makes the real one hard to use: joining waits for the peer and takes time; work reaches the stream only
// once the asynchronous error is no longer "in progress"; the death of a peer is not reported; only an abort ends a hung transfer.
// Two threads in one communicator at a time, or a transfer before the last one is on its stream, abort the program.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "fakes.h"

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int kSuccess = 0, kSystemError = 2, kInvalidArgument = 4, kInvalidUsage = 5, kInProgress = 7;
constexpr std::size_t kBox = 1 << 18;

struct Id {
  char name[128];
};

struct Config {
  std::size_t size;
  unsigned magic, version;
  int blocking;
};

struct Segment {  // all zero at first
  std::atomic<std::uint32_t> joined;
  std::atomic<std::uint64_t> sent, received;  // messages put into the box, messages read from it
  std::atomic<std::uint64_t> bytes;
  unsigned char box[kBox];
};

std::atomic<int> live{0};
std::mutex table;
FakeFaults next_faults[2] = {{0, 0, 0, -1, -1, -1, -1, -1, 0, 0}, {0, 0, 0, -1, -1, -1, -1, -1, 0, 0}};
std::map<std::string, std::weak_ptr<Segment>> segments;  // one mapping per process, so that a race detector sees one address

std::shared_ptr<Segment> open_segment(const std::string& name) {
  const std::lock_guard<std::mutex> lock(table);
  if (auto open = segments[name].lock()) return open;
  const int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(Segment)) != 0) return nullptr;
  void* memory = mmap(nullptr, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return nullptr;
  std::shared_ptr<Segment> segment(static_cast<Segment*>(memory), [name](Segment* mapped) {
    munmap(mapped, sizeof(Segment));
    shm_unlink(name.c_str());
    const std::lock_guard<std::mutex> erasing(table);
    if (segments[name].expired()) segments.erase(name);
  });
  segments[name] = segment;
  return segment;
}

void nap() { std::this_thread::sleep_for(microseconds(15)); }

struct Comm : std::enable_shared_from_this<Comm> {
  Comm(std::shared_ptr<Segment> segment, int rank, const FakeFaults& faults)
      : segment(std::move(segment)), rank(rank), faults(faults), random(faults.seed * 2 + static_cast<unsigned>(rank)) {
    ++live;
  }
  ~Comm() { --live; }

  microseconds delay() { return microseconds(faults.delay_us ? random() % faults.delay_us : 0); }

  // Until `ready`, or false: the communicator was aborted.
  template <class Ready>
  bool until(Ready ready) const {
    while (!ready()) {
      if (aborted) return false;
      nap();
    }
    return true;
  }

  std::shared_ptr<Segment> segment;
  const int rank;
  const FakeFaults faults;
  std::minstd_rand random;
  std::atomic<int> error{kInProgress};
  std::atomic<bool> aborted{false};
  std::atomic<int> inside{0};
  bool joined = false;
  int calls = 0;
  Clock::time_point ready = Clock::now();
  void* pending_stream = nullptr;
  struct Transfer* pending = nullptr;
};

struct Transfer {
  std::shared_ptr<Comm> comm;
  void* data;
  std::size_t bytes;
  int number;
  microseconds delay;

  void run() const {
    Comm& on = *comm;
    Segment& shared = *on.segment;
    std::this_thread::sleep_for(delay);
    if (number == on.faults.fail_async) on.error = on.faults.code;
    if (number == on.faults.fail_async || number == on.faults.hang_run) on.until([] { return false; });
    if (on.rank == 0) {
      if (!on.until([&] { return shared.received == shared.sent; })) return;
      std::memcpy(shared.box, data, bytes);
      shared.bytes = bytes;
      ++shared.sent;
      if (!on.faults.eager) on.until([&] { return shared.received == shared.sent; });
    } else {
      if (!on.until([&] { return shared.sent > shared.received; })) return;
      if (shared.bytes != bytes) {
        on.error = kInvalidUsage;
        on.until([] { return false; });
        return;
      }
      std::memcpy(data, shared.box, bytes);
      ++shared.received;
    }
  }
};

void run_transfer(void* transfer) {
  const std::unique_ptr<Transfer> owned(static_cast<Transfer*>(transfer));
  owned->run();
}

using Handle = std::shared_ptr<Comm>;

class Entering {  // NCCL is not safe for two threads in one communicator
 public:
  Entering(void* handle, const char* what) : comm_(*static_cast<Handle*>(handle)) {
    if (comm_->inside.fetch_add(1) != 0) {
      std::fprintf(stderr, "fake NCCL: %s while another thread is in the same communicator\n", what);
      std::abort();
    }
  }
  ~Entering() { comm_->inside.fetch_sub(1); }
  Comm* operator->() const { return comm_.get(); }
  Handle handle() const { return comm_; }

 private:
  Handle comm_;
};

int start(void* data, std::size_t bytes, void* handle, void* stream, const char* what) {
  const Entering comm(handle, what);
  if (comm->error == kInProgress) {
    std::fprintf(stderr, "fake NCCL: %s on a communicator that is still in progress\n", what);
    std::abort();
  }
  if (comm->error != kSuccess) return comm->error;
  if (bytes > kBox) return kInvalidArgument;
  const int number = comm->calls++;
  if (number == comm->faults.fail_call) return comm->faults.code;
  if (number == comm->faults.stall_call) std::this_thread::sleep_for(std::chrono::milliseconds(comm->faults.stall_ms));
  comm->pending = new Transfer{comm.handle(), data, bytes, number, comm->delay()};
  comm->pending_stream = stream;
  comm->ready = number == comm->faults.hang_issue ? Clock::time_point::max() : Clock::now() + comm->delay();
  int error = kSuccess;
  return comm->error.compare_exchange_strong(error, kInProgress) ? kInProgress : error;
}

int leave(void* handle, const char* what) {
  {
    const Entering comm(handle, what);
    comm->aborted = true;
    delete comm->pending;
    comm->pending = nullptr;
  }
  delete static_cast<Handle*>(handle);
  return kSuccess;
}

}  // namespace

extern "C" {

void fakeNcclFaults(int rank, const FakeFaults* faults) {
  const std::lock_guard<std::mutex> lock(table);
  next_faults[rank] = *faults;
}

int fakeNcclLive() { return live; }

int ncclGetVersion(int* version) {
  *version = 99901;
  return kSuccess;
}

const char* ncclGetErrorString(int code) {
  return code == 6 ? "remote process exited or there was a network error" : code == kInvalidUsage ? "invalid usage" : "a fake NCCL error";
}

int ncclGetUniqueId(Id* id) {
  static std::atomic<int> count{0};
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->name, sizeof id->name, "/everface-fake-nccl-%d-%d", static_cast<int>(getpid()), count++);
  return kSuccess;
}

int ncclCommInitRankConfig(void** comm, int ranks, Id id, int rank, const Config* config) {
  if (ranks != 2 || rank < 0 || rank > 1 || config->magic != 0xcafebeef || config->size < 24 || config->blocking != 0)
    return kInvalidArgument;
  auto segment = open_segment(id.name);
  if (!segment) return kSystemError;
  segment->joined |= 1u << rank;
  FakeFaults faults;
  {
    const std::lock_guard<std::mutex> lock(table);
    faults = next_faults[rank];
  }
  auto created = std::make_shared<Comm>(std::move(segment), rank, faults);
  created->ready += created->delay();
  *comm = new Handle(std::move(created));
  return kInProgress;
}

int ncclCommGetAsyncError(void* handle, int* state) {
  const Entering comm(handle, "ncclCommGetAsyncError");
  if (comm->error == kInProgress && Clock::now() >= comm->ready) {
    if (!comm->joined) {
      if (comm->segment->joined == 3) {
        comm->joined = true;
        comm->error = kSuccess;
      }
    } else {
      int expected = kInProgress;  // unless a transfer before it fails just now
      if (comm->error.compare_exchange_strong(expected, kSuccess) && comm->pending)
        cudaLaunchHostFunc(comm->pending_stream, run_transfer, std::exchange(comm->pending, nullptr));
    }
  }
  *state = comm->error;
  return kSuccess;
}

int ncclSend(const void* data, std::size_t bytes, int, int, void* comm, void* stream) {
  return start(const_cast<void*>(data), bytes, comm, stream, "ncclSend");
}

int ncclRecv(void* data, std::size_t bytes, int, int, void* comm, void* stream) { return start(data, bytes, comm, stream, "ncclRecv"); }

int ncclCommFinalize(void* handle) {
  const Entering comm(handle, "ncclCommFinalize");
  comm->ready = Clock::now() + comm->delay();
  return comm->error = kInProgress;
}

int ncclCommDestroy(void* comm) { return leave(comm, "ncclCommDestroy"); }
int ncclCommAbort(void* comm) { return leave(comm, "ncclCommAbort"); }
}
