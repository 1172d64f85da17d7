// A CUDA runtime without a device: memory is the host's, a stream is a thread that runs its work in order, an event counts.
// As with the real one, a destroyed stream first finishes its queued work, and a query never waits. Device memory is a memory file, which another
// process opens by its handle. What the real one leaves undefined is an error here: freeing memory that is open elsewhere.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fcntl.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sys/file.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

#include "fakes.h"

namespace {

constexpr int kNotReady = 600, kInvalidHandle = 400, kInvalidValue = 1, kNoMemory = 2, kNoDevice = 101;

std::atomic<int> live{0}, failure{0};
thread_local int device = 0;

struct Alive {
  Alive() { ++live; }
  ~Alive() { --live; }
};

struct Event : Alive {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t recorded = 0, reached = 0;

  void reach(std::uint64_t mark) {
    const std::lock_guard<std::mutex> lock(mutex);
    reached = mark;
    changed.notify_all();
  }
};

struct Stream : Alive {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> work;
  bool destroyed = false, busy = false;

  void run() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return destroyed || !work.empty(); });
      if (work.empty()) return;
      auto next = std::move(work.front());
      work.pop_front();
      busy = true;
      lock.unlock();
      next();
      next = nullptr;
      lock.lock();
      busy = false;
    }
  }
};

struct Memory {
  int file;
  std::size_t size;
};

struct Handle {
  char mark[8];
  std::int64_t process, file;
  std::uint64_t size;
  char rest[32];
};
static_assert(sizeof(Handle) == 64);
constexpr char kMark[8] = "fake-ip";

std::mutex memory_mutex;
std::map<void*, Memory> allocated, opened;

void* map(const Memory& memory) { return ::mmap(nullptr, memory.size, PROT_READ | PROT_WRITE, MAP_SHARED, memory.file, 0); }

int unmap(std::map<void*, Memory>& from, void* base) {
  const auto found = from.find(base);
  if (found == from.end()) return kInvalidValue;
  ::munmap(base, found->second.size);
  ::close(found->second.file);
  from.erase(found);
  return 0;
}

using StreamPointer = std::shared_ptr<Stream>;
using EventPointer = std::shared_ptr<Event>;

int enqueue(void* stream, std::function<void()> work) {
  if (!stream) {  // the default stream, which gets only short work in tests
    work();
    return 0;
  }
  Stream& to = **static_cast<StreamPointer*>(stream);
  const std::lock_guard<std::mutex> lock(to.mutex);
  to.work.push_back(std::move(work));
  to.changed.notify_all();
  return 0;
}

}  // namespace

extern "C" {

int fakeCudaLive() { return live; }
void fakeCudaFail(int code) { failure = code; }

const char* cudaGetErrorString(int code) { return code == 700 ? "an illegal memory access was encountered" : "a fake CUDA error"; }

int cudaGetDevice(int* current) {
  *current = device;
  return 0;
}

int cudaSetDevice(int wanted) {
  device = wanted;
  return wanted < 0 || wanted > 7 ? kNoDevice : 0;
}

int cudaDeviceGetPCIBusId(char* name, int size, int of) {
  if (of < 0 || of > 7) return kNoDevice;
  std::snprintf(name, static_cast<std::size_t>(size), "0000:%02X:00.0", 16 * of + 4);
  return 0;
}

int cudaDeviceGetByPCIBusId(int* found, const char* name) {
  for (*found = 0; *found < 8; ++*found) {
    char own[32];
    cudaDeviceGetPCIBusId(own, sizeof own, *found);
    if (!std::strcmp(own, name)) return 0;
  }
  return kInvalidValue;
}

int cudaMalloc(void** base, std::size_t size) {
  const Memory memory{::memfd_create("fake cuda", MFD_CLOEXEC), size};
  if (memory.file < 0 || ::ftruncate(memory.file, static_cast<off_t>(size)) || (*base = map(memory)) == MAP_FAILED) return kNoMemory;
  const std::lock_guard<std::mutex> lock(memory_mutex);
  allocated[*base] = memory;
  return 0;
}

int cudaFree(void* base) {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  const auto found = allocated.find(base);
  if (found != allocated.end() && ::flock(found->second.file, LOCK_EX | LOCK_NB)) return kInvalidHandle;  // open elsewhere
  return unmap(allocated, base);
}

int cudaIpcGetMemHandle(Handle* handle, void* base) {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  const auto found = allocated.find(base);
  if (found == allocated.end()) return kInvalidValue;
  *handle = {};
  std::memcpy(handle->mark, kMark, sizeof kMark);
  handle->process = ::getpid();
  handle->file = found->second.file;
  handle->size = found->second.size;
  return 0;
}

int cudaIpcOpenMemHandle(void** base, Handle handle, unsigned) {
  if (std::memcmp(handle.mark, kMark, sizeof kMark) || handle.process == ::getpid()) return kInvalidHandle;  // the real one refuses its own too
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%lld/fd/%lld", static_cast<long long>(handle.process), static_cast<long long>(handle.file));
  const Memory memory{::open(path, O_RDWR | O_CLOEXEC), static_cast<std::size_t>(handle.size)};
  if (memory.file < 0) return kInvalidHandle;
  if (::flock(memory.file, LOCK_SH | LOCK_NB) || (*base = map(memory)) == MAP_FAILED) {
    ::close(memory.file);
    return kInvalidHandle;
  }
  const std::lock_guard<std::mutex> lock(memory_mutex);
  opened[*base] = memory;
  return 0;
}

int cudaIpcCloseMemHandle(void* base) {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  return unmap(opened, base);
}

int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return 0;
}

int cudaThreadExchangeStreamCaptureMode(int* mode) { return *mode = 0; }

int cudaStreamCreateWithPriority(void** stream, unsigned, int) {
  auto* created = new StreamPointer(std::make_shared<Stream>());
  std::thread([kept = *created]() mutable { kept->run(); }).detach();
  *stream = created;
  return 0;
}

int cudaStreamDestroy(void* stream) {
  auto* destroyed = static_cast<StreamPointer*>(stream);
  {
    const std::lock_guard<std::mutex> lock((*destroyed)->mutex);
    (*destroyed)->destroyed = true;
    (*destroyed)->changed.notify_all();
  }
  delete destroyed;
  return 0;
}

int cudaStreamQuery(void* stream) {
  Stream& of = **static_cast<StreamPointer*>(stream);
  const std::lock_guard<std::mutex> lock(of.mutex);
  return of.busy || !of.work.empty() ? kNotReady : 0;
}

int cudaStreamSynchronize(void* stream) {
  if (failure) return failure;
  while (stream && cudaStreamQuery(stream) == kNotReady) std::this_thread::yield();
  return 0;
}

int cudaStreamWaitEvent(void* stream, void* event, unsigned) {
  const EventPointer on = *static_cast<EventPointer*>(event);
  std::unique_lock<std::mutex> lock(on->mutex);
  const std::uint64_t mark = on->recorded;
  lock.unlock();
  return enqueue(stream, [on, mark] {
    std::unique_lock<std::mutex> waiting(on->mutex);
    on->changed.wait(waiting, [&] { return on->reached >= mark; });
  });
}

int cudaEventCreateWithFlags(void** event, unsigned) {
  *event = new EventPointer(std::make_shared<Event>());
  return 0;
}

int cudaEventDestroy(void* event) {
  delete static_cast<EventPointer*>(event);
  return 0;
}

int cudaEventRecord(void* event, void* stream) {
  if (!event) return kInvalidHandle;
  const EventPointer on = *static_cast<EventPointer*>(event);
  std::unique_lock<std::mutex> lock(on->mutex);
  const std::uint64_t mark = ++on->recorded;
  lock.unlock();
  return enqueue(stream, [on, mark] { on->reach(mark); });
}

int cudaEventQuery(void* event) {
  if (failure) return failure;
  Event& on = **static_cast<EventPointer*>(event);
  const std::lock_guard<std::mutex> lock(on.mutex);
  return on.reached == on.recorded ? 0 : kNotReady;
}

int cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int, void* stream) {
  return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}

int cudaLaunchHostFunc(void* stream, void (*function)(void*), void* argument) {
  return enqueue(stream, [=] { function(argument); });
}
}
