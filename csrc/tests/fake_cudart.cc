// A CUDA runtime without a device: memory is the host's, a stream is a thread that runs its work in order, an event counts.
// As with the real one, a destroyed stream first finishes its queued work, and a query never waits.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "fakes.h"

namespace {

constexpr int kNotReady = 600, kInvalidHandle = 400;

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
  return wanted < 0 || wanted > 7 ? 101 : 0;
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
