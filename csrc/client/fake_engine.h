// An engine without a model, in threads of this process: it speaks the protocol, so that a program's tests need nothing else.
#pragma once

#include <atomic>
#include <list>
#include <mutex>
#include <thread>

namespace everface::client {

class FakeEngine {
 public:
  FakeEngine() = default;
  ~FakeEngine();
  void serve(int descriptor);  // takes it over

 private:
  struct Served {
    std::thread thread;
    int wake = -1;  // readable: the engine ends
    std::atomic<bool> over{false};
  };
  static void end(Served& served);

  std::mutex mutex_;
  std::list<Served> served_;
};

}  // namespace everface::client
