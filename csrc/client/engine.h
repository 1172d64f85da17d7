// Where connections come from: a running engine, one of our own, or a fake one in this process.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <sys/types.h>
#include <unistd.h>
#include <vector>

#include "error.h"

namespace everface::client {

class FakeEngine;
class Session;
using Clock = std::chrono::steady_clock;

inline Clock::time_point after(uint32_t ms) { return Clock::now() + std::chrono::milliseconds(ms); }

class Engine {
 public:
  explicit Engine(const ef_engine_config& config);
  virtual ~Engine();

  // Starts what has to be started.
  Error start();
  // A new connection, without waiting for the engine to answer. Starts an engine of our own again if it ended. -1 and an error, or its socket.
  // EF_TIMEOUT: an engine is there, and too many wait for it to take their connections.
  virtual int connect(Error& error);
  uint32_t timeout_ms() const { return timeout_ms_; }

  void add_waiting(const std::shared_ptr<Session>& session);
  void cancel();

 private:
  Error spawn();
  bool ended();
  void end_process();

  std::mutex mutex_;
  std::string path_, command_;
  bool fake_;
  uint32_t timeout_ms_;
  std::unique_ptr<FakeEngine> fake_engine_;
  int owner_ = -1;  // our end of the socket of an engine of our own
  pid_t pid_ = -1;
  const pid_t process_ = ::getpid();
  Clock::time_point started_{};
  std::vector<std::weak_ptr<Session>> waiting_;
};

void close_descriptor(int descriptor);
// A path that another process reads: from the root, if it can be made so.
std::string absolute(const char* path);

}  // namespace everface::client
