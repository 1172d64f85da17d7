#include "session.h"

#include <algorithm>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "event_descriptor.h"
#include "protocol.h"

namespace everface::client {
namespace {

constexpr size_t kMostWaiting = 24u << 20;  // bytes for an engine that reads nothing
constexpr auto kAfterDrain = std::chrono::milliseconds(1000);
constexpr auto kBetweenConnects = std::chrono::milliseconds(10);

}  // namespace

Session::Session(std::shared_ptr<Engine> engine, const ef_session_config& config)
    : engine_(std::move(engine)), image_(config.image ? config.image : ""), prompt_(config.prompt ? config.prompt : ""), config_(config) {}

Session::~Session() { free_descriptors(); }

Error Session::open() {
  if (config_.cuda_device >= 0)
    if (Error error = name_gpu(config_.cuda_device, gpu_)) return error;
  Lock lock(mutex_);
  pollable_ = ::epoll_create1(EPOLL_CLOEXEC);
  ready_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  nudge_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  timer_ = ::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (pollable_ < 0 || ready_ < 0 || nudge_ < 0 || timer_ < 0) return {EF_UNAVAILABLE, "no descriptors are left: close other files"};
  for (const int each : {ready_, timer_}) {
    epoll_event what{};
    what.events = EPOLLIN;
    ::epoll_ctl(pollable_, EPOLL_CTL_ADD, each, &what);
  }
  const Time end = after(config_.timeout_ms);
  Error error = connect();
  while (error.status == EF_TIMEOUT && !cancel_next_ && Clock::now() < end) {  // many open at once
    changed_.wait_for(lock, kBetweenConnects);
    error = connect();
  }
  if (error) return error.status == EF_TIMEOUT && cancel_next_ ? Error{EF_CANCELLED, "the call was cancelled"} : error;
  Error waited = wait(lock, end, [this] { return opened_; });
  cancel_next_ = false;  // it was for this call
  if (waited.status == EF_TIMEOUT)
    waited.text = "the session did not open in " + std::to_string(config_.timeout_ms) + " ms: allow more, or look at the engine's log";
  if (waited.status == EF_CLOSED && error_) waited = error_;
  if (waited) finish();
  return waited;
}

Error Session::connect() {
  Error error;
  const int descriptor = engine_->connect(error);
  if (descriptor < 0) return error;
  channel_.open(descriptor);
  watching_writes_ = false;
  epoll_event what{};
  what.events = EPOLLIN;
  ::epoll_ctl(pollable_, EPOLL_CTL_ADD, descriptor, &what);
  state_ = State::greeting;
  Writer hello(kClientHello, 3);
  channel_.queue(hello.text(kMagic).integer(kMajor).integer(kMinor).message());
  Writer request(kOpenRequest, 11);
  request.text(image_).unsigned_integer(config_.seed).boolean(config_.idle).boolean(config_.paced).integer(config_.playback_hz);
  request.integer(config_.outbox_ms).integer(config_.slots).integer(config_.width).integer(config_.height).text(prompt_).text(gpu_);
  channel_.queue(request.message());
  io();
  return {};
}

void Session::cancel_open() {
  Lock lock(mutex_);
  if (opened_) return;
  if (waiters_) {
    ++cancels_;
  } else {
    cancel_next_ = true;  // it has not begun to wait
  }
  nudge();
}

Error Session::check_open() const {
  if (state_ == State::closed) return error_ ? error_ : Error{EF_CLOSED, "the session is closed: open another"};
  if (draining_) return {EF_CLOSED, "the session is closing: open another"};
  return {};
}

// Audio only: what else a caller says is short, and has an effect here before it is sent.
Error Session::check_backlog() const {
  if (channel_.waiting() > kMostWaiting) return {EF_UNAVAILABLE, "the engine reads nothing: look at its log"};
  return {};
}

Error Session::send(Writer& writer) {
  if (state_ == State::lost || state_ == State::opening || state_ == State::greeting) return {};  // there is nothing there that it concerns
  channel_.queue(writer.message());
  io();
  if (leader_) nudge();
  return {};
}

Error Session::end_segment() {
  Lock lock(mutex_);
  if (Error error = check_open()) return error;
  if (!rate_hz_) return {};
  rate_hz_ = 0;
  Writer request(kEndSegmentRequest, 0);
  return send(request);
}

Error Session::interrupt(uint64_t& turn) {
  Lock lock(mutex_);
  if (Error error = check_open()) return error;
  turn = ++turn_;
  if (state_ != State::open) turn_base_ = turn_;  // the engine that comes begins with it
  rate_hz_ = 0;
  unacknowledged_.clear();
  drop_media();
  Writer request(kInterruptRequest, 1);
  return send(request.unsigned_integer(turn_ - turn_base_));
}

Error Session::stats(uint32_t timeout_ms, ef_stats& out) {
  Lock lock(mutex_);
  const Error away{EF_UNAVAILABLE, "the engine is coming back: ask again after EF_EVENT_RECOVERED"};
  if (state_ == State::closed) return check_open();
  if (state_ != State::open) return away;
  const int64_t number = ++asked_;
  Writer request(kStatsRequest, 1);
  if (Error error = send(request.integer(number))) return error;
  if (Error error = wait(lock, after(timeout_ms), [&] { return answered_ >= number || state_ != State::open; })) return error;
  if (answered_ < number) return away;
  const size_t size = out.struct_size;
  out = stats_;
  out.struct_size = size;
  out.slots = frames_->slots;
  out.borrowed = static_cast<uint32_t>(std::count(borrowed_.begin(), borrowed_.end(), true));
  return {};
}

void Session::cancel() {
  Lock lock(mutex_);
  if (waiters_) {
    ++cancels_;
  } else {
    cancel_next_ = true;
  }
  nudge();
}

Error Session::close(uint32_t drain_ms) {
  if (forked()) return {};  // the socket is the parent's too, and its session goes on
  Lock lock(mutex_);
  if (state_ == State::closed) return {};
  Writer request(kCloseRequest, 1);
  request.integer(drain_ms);
  if (drain_ms) {
    if (draining_) return {};
    if (state_ != State::open) {  // what it had is gone with its engine
      finish();
      return {};
    }
    const Error error = send(request);
    draining_ = true;
    drain_end_ = after(drain_ms) + kAfterDrain;
    arm(drain_end_ + std::chrono::milliseconds(1));
    return error;
  }
  channel_.queue(request.message());
  if (state_ != State::lost) channel_.flush();
  finish();
  events_.clear();
  if (!ready_set_) set_event(ready_);
  ready_set_ = true;
  return {};
}

void Session::free_descriptors() {
  close(0);
  std::shared_ptr<Engine> engine;  // which ends after the lock, if this was its last session, however long frames are held
  Lock lock(mutex_, std::defer_lock);
  if (!forked()) lock.lock();  // in a child a thread that is not there may hold it
  for (int* each : {&pollable_, &ready_, &nudge_, &timer_}) {
    if (*each >= 0) ::close(*each);
    *each = -1;
  }
  engine = std::move(engine_);
}

}  // namespace everface::client
