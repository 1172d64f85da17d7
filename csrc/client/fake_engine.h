// An engine without a model, in threads of this process: it speaks the protocol, so that a program's tests need nothing else.
#pragma once

#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace everface::client {

class FakeEngine {
 public:
  FakeEngine() = default;
  ~FakeEngine();
  void serve(int descriptor);  // takes it over

 private:
  std::mutex mutex_;
  std::vector<std::thread> threads_;
  std::vector<int> wakes_;
};

}  // namespace everface::client
