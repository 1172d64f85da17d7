// everface.hpp: everface.h for C++17. Handles free themselves, failures are exceptions. Header only: the ABI is that of the C functions.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "everface.h"

namespace everface {

class Error : public std::runtime_error {
 public:
  explicit Error(ef_status status) : std::runtime_error(ef_last_error()), status_(status) {}
  ef_status status() const noexcept { return status_; }

 private:
  ef_status status_;
};

inline void check(ef_status status) {
  if (status != EF_OK) throw Error(status);
}

namespace detail {
struct Free {
  void operator()(ef_engine* e) const noexcept { ef_engine_free(e); }
  void operator()(ef_session* s) const noexcept { ef_session_free(s); }
  void operator()(const ef_event* e) const noexcept { ef_event_release(e); }
};
inline uint32_t ms(std::chrono::milliseconds time) { return time.count() < 0 ? 0u : static_cast<uint32_t>(time.count()); }
}  // namespace detail

struct EngineConfig : ef_engine_config {
  EngineConfig() { ef_engine_config_defaults(this); }
};

struct SessionConfig : ef_session_config {
  explicit SessionConfig(const char* path) {
    ef_session_config_defaults(this);
    image = path;
  }
};

struct Change : ef_change {
  Change() { ef_change_defaults(this); }
};

// A frame or another event; its memory is given back when it goes out of scope.
using Event = std::unique_ptr<const ef_event, detail::Free>;

class Session {
 public:
  // Samples per channel that were taken; fewer than `count` where there was no room in time.
  size_t push_audio(const int16_t* samples, size_t count, uint32_t rate_hz, uint32_t channels = 1, std::chrono::milliseconds timeout = {}) {
    return push(samples, count, EF_INT16, rate_hz, channels, timeout);
  }
  size_t push_audio(const float* samples, size_t count, uint32_t rate_hz, uint32_t channels = 1, std::chrono::milliseconds timeout = {}) {
    return push(samples, count, EF_FLOAT32, rate_hz, channels, timeout);
  }
  void push_user_audio(const int16_t* samples, size_t count, uint32_t rate_hz, uint32_t channels = 1) {
    check(ef_session_push_user_audio(get(), samples, count, EF_INT16, rate_hz, channels));
  }
  void push_user_audio(const float* samples, size_t count, uint32_t rate_hz, uint32_t channels = 1) {
    check(ef_session_push_user_audio(get(), samples, count, EF_FLOAT32, rate_hz, channels));
  }
  void change(const ef_change& what, std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
    check(ef_session_change(get(), &what, detail::ms(timeout)));
  }
  std::string remark() const {
    std::string text(ef_session_remark(get(), nullptr, 0) + 1, '\0');
    text.resize(std::min(text.size() - 1, ef_session_remark(get(), text.data(), text.size())));  // another thread may change the image in between
    return text;
  }
  void end_segment() { check(ef_session_end_segment(get())); }
  uint64_t interrupt() {
    uint64_t turn = 0;
    check(ef_session_interrupt(get(), &turn));
    return turn;
  }
  // Empty when nothing came in time, after a cancel, or when the session is closed.
  Event poll(std::chrono::milliseconds timeout = {}) {
    const ef_event* event = nullptr;
    const ef_status status = ef_session_poll(get(), detail::ms(timeout), &event);
    if (status != EF_TIMEOUT && status != EF_CANCELLED && status != EF_CLOSED) check(status);
    return Event(event);
  }
  ef_stats stats(std::chrono::milliseconds timeout = std::chrono::seconds(1)) {
    ef_stats stats;
    ef_stats_defaults(&stats);
    check(ef_session_stats(get(), detail::ms(timeout), &stats));
    return stats;
  }
  int fd() const noexcept { return ef_session_fd(get()); }
  void cancel() noexcept { ef_session_cancel(get()); }
  void close(std::chrono::milliseconds drain = {}) { check(ef_session_close(get(), detail::ms(drain))); }
  ef_session* get() const noexcept { return handle_.get(); }

 private:
  friend class Engine;
  explicit Session(ef_session* handle) : handle_(handle) {}
  size_t push(const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels, std::chrono::milliseconds timeout) {
    size_t accepted = 0;
    const ef_status status = ef_session_push_audio(get(), samples, count, format, rate_hz, channels, detail::ms(timeout), &accepted);
    if (status != EF_TIMEOUT && status != EF_CANCELLED) check(status);
    return accepted;
  }
  std::unique_ptr<ef_session, detail::Free> handle_;
};

class Engine {
 public:
  explicit Engine(const ef_engine_config& config = EngineConfig()) {
    const uint32_t abi = ef_abi_version();
    if (abi >> 16 != EF_ABI_MAJOR || abi < (EF_ABI_MAJOR << 16 | EF_ABI_MINOR))
      throw std::runtime_error("libeverface is older than everface.hpp, or of another major version: link the one that came with it");
    ef_engine* handle = nullptr;
    check(ef_engine_open(&config, &handle));
    handle_.reset(handle);
  }
  Session open(const ef_session_config& config) {
    ef_session* session = nullptr;
    check(ef_session_open(handle_.get(), &config, &session));
    return Session(session);
  }
  void cancel() noexcept { ef_engine_cancel(handle_.get()); }
  ef_engine* get() const noexcept { return handle_.get(); }

 private:
  std::unique_ptr<ef_engine, detail::Free> handle_;
};

}  // namespace everface
