// Ends: an error, a lost engine and the way back, the last event.
#include <algorithm>
#include <sys/timerfd.h>

#include "event_descriptor.h"
#include "session.h"

namespace everface::client {
namespace {

constexpr auto kRetry = std::chrono::milliseconds(100);

}  // namespace

void Session::fail(Error error) {
  error_ = error;
  if (opened_) {
    auto event = std::make_unique<Event>(EF_EVENT_ERROR);
    event->status = error.status;
    event->data = error.text;
    queue(std::move(event));
  }
  finish();
}

void Session::finish() {
  if (state_ == State::closed && ended_) return;
  abandon_changes({EF_CLOSED, "the session is closed: open another"});
  state_ = State::closed;
  ended_ = true;
  channel_.close();
  segments_.clear();
  if (opened_) queue(std::make_unique<Event>(EF_EVENT_CLOSED));
  nudge();
  changed_.notify_all();
}

void Session::lose(const std::string& why) {
  if (!opened_ || draining_) {
    if (opened_) return fail({EF_LOST, why + ": open another session"});
    error_ = {EF_LOST, why + " while the session opened: what it printed says why"};
    return finish();
  }
  if (state_ == State::open) {
    lost_at_ = Clock::now();
    lost_end_ = lost_at_ + std::chrono::milliseconds(engine_->timeout_ms());
    auto event = std::make_unique<Event>(EF_EVENT_RECOVERING);
    event->status = EF_LOST;
    event->data = why;
    queue(std::move(event));
    for (const Segment& s : segments_) {  // each has its one result
      auto end = std::make_unique<Event>(EF_EVENT_SEGMENT_END);
      end->segment = s.number;
      end->pushed_s = s.pushed_s;
      end->shown_s = s.shown_s;
      end->interrupted = 1;
      queue(std::move(end));
    }
    segments_.clear();
    abandon_changes({EF_LOST, "the engine went away before it had changed anything: change again after EF_EVENT_RECOVERED"});
    unacknowledged_.clear();
    rate_hz_ = 0;
    segment_base_ = segment_count_;
    turn_base_ = turn_;
    pts_base_ = next_pts_;
  }
  channel_.close();
  state_ = State::lost;
  nudge();
  next_try_ = Clock::now() + kRetry;
  arm(next_try_);
}

// Makes the session's descriptor readable then, for who waits on it alone.
void Session::arm(Time when) {
  const auto left = std::max<int64_t>(1, std::chrono::nanoseconds(when - Clock::now()).count());
  itimerspec timer{};
  timer.it_value = {static_cast<time_t>(left / 1000000000), static_cast<long>(left % 1000000000)};
  ::timerfd_settime(timer_, 0, &timer, nullptr);
}

void Session::disarm() {
  const itimerspec never{};
  ::timerfd_settime(timer_, 0, &never, nullptr);
}

void Session::try_again() {
  const Time now = Clock::now();
  if (now < next_try_) return;
  clear_event(timer_);
  if (connect()) return lose("the engine went away");
  if (state_ == State::greeting || state_ == State::opening) arm(lost_end_ + std::chrono::milliseconds(1));
}

void Session::give_up() {
  fail({EF_LOST, "the engine did not come back in " + std::to_string(engine_->timeout_ms()) + " ms: open another session"});
}

}  // namespace everface::client
