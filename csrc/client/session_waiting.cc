// Waiting: one of those who wait reads, writes and sleeps for all.
#include <algorithm>
#include <poll.h>
#include <sys/epoll.h>

#include "event_descriptor.h"
#include "session.h"

namespace everface::client {
namespace {

constexpr size_t kMostEvents = 4096;

}  // namespace

void Session::io() {
  if (state_ == State::closed) return;
  if (draining_ && Clock::now() > drain_end_) return finish();
  if (opened_ && state_ != State::open && Clock::now() > lost_end_) return give_up();  // an engine that took us and says nothing, too
  if (state_ == State::lost) return try_again();
  const bool sending = channel_.flush();
  const bool receiving = events_.size() < kMostEvents ? channel_.fill() : true;
  const size_t before = events_.size();
  read_messages();
  if (state_ != State::closed && state_ != State::lost && !(sending && receiving)) lose("the engine went away");
  watch();
  if (events_.size() != before || state_ != State::open) changed_.notify_all();
}

void Session::watch() {
  if (state_ == State::closed || state_ == State::lost) return;
  const bool writes = channel_.waiting() > 0;
  if (writes == watching_writes_) return;
  watching_writes_ = writes;
  epoll_event what{};
  what.events = EPOLLIN | (writes ? EPOLLOUT : 0u);
  ::epoll_ctl(pollable_, EPOLL_CTL_MOD, channel_.descriptor(), &what);
}

void Session::nudge() {
  if (leader_) set_event(nudge_);
  changed_.notify_all();
}

// Until done(), or the session ends, a cancel comes, or the time is over.
Error Session::wait(Lock& lock, Time end, const std::function<bool()>& done) {
  const uint64_t cancels = cancels_;
  const auto cancelled = [&] { return cancels_ != cancels || cancel_next_; };
  bool slept = false;
  ++waiters_;
  Error result;
  while (true) {
    const uint64_t read = messages_read_;
    io();
    // What we read may be what the leader waits for, and what we came to send may have to wait for the socket. Nothing else may wake it: two that
    // woke each other would never sleep.
    if (leader_ && (!slept || messages_read_ != read)) set_event(nudge_);
    const Time now = Clock::now();
    const bool over = done();
    const bool waits = !over && state_ != State::closed && now < end;
    if (cancelled() && (slept || waits)) {  // who slept is cancelled whatever came with it
      cancel_next_ = false;
      result = {EF_CANCELLED, "the call was cancelled"};
      break;
    }
    if (!waits) {
      if (over) break;
      result = state_ == State::closed ? Error{EF_CLOSED, "the session is closed: open another"} : Error{EF_TIMEOUT, "nothing came in time"};
      break;
    }
    slept = true;
    if (leader_) {
      changed_.wait_until(lock, end);
      continue;
    }
    leader_ = true;
    Time until = end;
    if (state_ == State::lost) until = std::min(until, next_try_);
    if (opened_ && state_ != State::open) until = std::min(until, lost_end_ + std::chrono::milliseconds(1));
    if (draining_) until = std::min(until, drain_end_ + std::chrono::milliseconds(1));
    const auto left = std::max(std::chrono::nanoseconds(0), std::chrono::nanoseconds(until - now));
    const timespec time{static_cast<time_t>(left.count() / 1000000000), static_cast<long>(left.count() % 1000000000)};
    pollfd watched[2] = {{nudge_, POLLIN, 0}, {channel_.descriptor(), static_cast<short>(POLLIN | (channel_.waiting() ? POLLOUT : 0)), 0}};
    const nfds_t count = state_ == State::lost ? 1 : 2;
    lock.unlock();
    ::ppoll(watched, count, &time, nullptr);
    lock.lock();
    leader_ = false;
    clear_event(nudge_);
    changed_.notify_all();  // another one leads while this one works
  }
  --waiters_;
  return result;
}

}  // namespace everface::client
