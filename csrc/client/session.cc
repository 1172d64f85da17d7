#include "session.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "color.h"
#include "protocol.h"

namespace everface::client {
namespace {

constexpr size_t kChunkBytes = 1 << 18;
constexpr size_t kMostWaiting = 24u << 20;  // bytes for an engine that reads nothing
constexpr size_t kMostEvents = 4096;
constexpr uint32_t kMostSlots = 64, kMostSide = 8192;
constexpr float kPeak = 8.0f;
constexpr auto kRetry = std::chrono::milliseconds(100);
constexpr auto kAfterDrain = std::chrono::milliseconds(1000);

// A count that an engine sent. More than any session reaches would overflow sums.
bool sane(int64_t count) { return count >= 0 && count < int64_t{1} << 53; }

Clock::time_point after(uint32_t ms) { return Clock::now() + std::chrono::milliseconds(ms); }

void set_event(int descriptor) {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t done = ::write(descriptor, &one, sizeof one);
}

void clear_event(int descriptor) {
  uint64_t count;
  [[maybe_unused]] const ssize_t done = ::read(descriptor, &count, sizeof count);
}

}  // namespace

Frames::~Frames() {
  if (base) ::munmap(const_cast<uint8_t*>(base), size);
}

Event::Event(ef_event_type kind) : ef_event{} {
  struct_size = sizeof(ef_event);
  type = kind;
}

Session::Session(std::shared_ptr<Engine> engine, const ef_session_config& config)
    : engine_(std::move(engine)), image_(config.image ? config.image : ""), prompt_(config.prompt ? config.prompt : ""), config_(config) {}

Session::~Session() { free_descriptors(); }

// opening

Error Session::open() {
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
  if (Error error = connect()) return error;
  Error waited = wait(lock, after(config_.timeout_ms), [this] { return opened_; });
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
  Writer request(kOpenRequest, 10);
  request.text(image_).unsigned_integer(config_.seed).boolean(config_.idle).boolean(config_.paced).integer(config_.playback_hz);
  request.integer(config_.outbox_ms).integer(config_.slots).integer(config_.width).integer(config_.height).text(prompt_);
  channel_.queue(request.message());
  io();
  return {};
}

void Session::cancel_open() {
  Lock lock(mutex_);
  if (opened_) return;
  ++cancels_;
  nudge();
}

// reading and writing, with the lock held

void Session::io() {
  if (state_ == State::closed) return;
  if (draining_ && Clock::now() > drain_end_) return finish();
  if (state_ == State::lost) return try_again();
  const bool sending = channel_.flush();
  const bool receiving = events_.size() < kMostEvents ? channel_.fill() : true;
  const size_t before = events_.size();
  read_messages();
  if (state_ != State::closed && state_ != State::lost && !(sending && receiving)) lose("the engine went away");
  watch();
  if (events_.size() != before || state_ != State::open) changed_.notify_all();
}

void Session::read_messages() {
  bool broken = false;
  size_t size = 0;
  while (state_ != State::closed && state_ != State::lost) {
    const uint8_t* data = channel_.next(size, broken);
    if (broken) return fail({EF_VERSION, "the engine sent what is no message: use a library and an engine of one version"});
    if (!data) return;
    handle(data, size);
  }
}

void Session::handle(const uint8_t* data, size_t size) {
  Reader r(data, size);
  const int64_t tag = r.integer(-1);
  std::unique_ptr<Event> event;
  switch (tag) {
    case kEngineHello: handle_hello(r); break;
    case kOpenReply: handle_open(r); break;
    case kFrameNotice: handle_frame(r); break;
    case kAudioNotice: handle_audio(r); break;
    case kSegmentNotice: handle_segment(r); break;
    case kUnderrunNotice:
      event = std::make_unique<Event>(EF_EVENT_UNDERRUN);
      event->frames = static_cast<uint64_t>(r.integer());
      event->time_s = r.real() + static_cast<double>(pts_base_) / sample_rate_;
      break;
    case kRecoveringNotice:
      event = std::make_unique<Event>(EF_EVENT_RECOVERING);
      event->data = r.text();
      event->status = EF_UNAVAILABLE;
      break;
    case kRecoveredNotice:
      event = std::make_unique<Event>(EF_EVENT_RECOVERED);
      event->seconds = r.real();
      event->recomputed = static_cast<uint64_t>(r.integer());
      break;
    case kErrorNotice: {
      const auto status = r.integer();
      fail({status >= EF_BAD_INPUT && status <= EF_LOST ? static_cast<ef_status>(status) : EF_UNAVAILABLE, std::string(r.text())});
      return;
    }
    case kClosedNotice: finish(); return;
    case kAudioAck: handle_ack(r); break;
    case kStatsReply: handle_stats(r); break;
    default: break;  // of a newer engine
  }
  if (!r.ok()) return fail({EF_VERSION, "the engine sent a message that cannot be read: use a library and an engine of one version"});
  if (event) queue(std::move(event));
}

void Session::handle_hello(Reader& r) {
  const int64_t major = r.integer();
  r.integer();
  const std::string_view version = r.text();
  if (r.ok() && major != kMajor)
    return fail({EF_VERSION, "the engine speaks protocol " + std::to_string(major) + " and this library " + std::to_string(kMajor) +
                                 ": use the library of everface " + std::string(version)});
  if (state_ == State::greeting) state_ = State::opening;
}

void Session::handle_open(Reader& r) {
  auto frames = std::make_shared<Frames>();
  const int64_t width = r.integer(), height = r.integer(), slots = r.integer(), slot_bytes = r.integer();
  const int64_t sample_rate = r.integer(), fps = r.integer(), window_ms = r.integer();
  const int descriptor = channel_.take_passed();
  struct stat memory {};
  const bool fits = r.ok() && state_ == State::opening && descriptor >= 0 && width > 0 && width <= kMostSide && height > 0 &&
                    height <= kMostSide && slots > 0 && slots <= kMostSlots && slot_bytes >= 3 * width * height &&
                    slot_bytes <= 4 * int64_t{kMostSide} * kMostSide && sample_rate > 0 && sample_rate <= 192000 && fps > 0 && fps <= 240 &&
                    window_ms > 0 && window_ms <= 60000 && ::fstat(descriptor, &memory) == 0 && memory.st_size >= slots * slot_bytes &&
                    (!frames_ || (frames_->width == width && frames_->height == height));
  if (fits) {
    frames->size = static_cast<size_t>(slots * slot_bytes);
    void* base = ::mmap(nullptr, frames->size, PROT_READ, MAP_SHARED, descriptor, 0);
    if (base != MAP_FAILED) frames->base = static_cast<const uint8_t*>(base);
  }
  if (descriptor >= 0) ::close(descriptor);
  if (!frames->base) return fail({EF_VERSION, "the engine opened a session that makes no sense: use a library and an engine of one version"});
  frames->width = static_cast<uint32_t>(width);
  frames->height = static_cast<uint32_t>(height);
  frames->slots = static_cast<uint32_t>(slots);
  frames->slot_bytes = static_cast<size_t>(slot_bytes);
  sample_rate_ = static_cast<uint32_t>(sample_rate);
  samples_per_frame_ = static_cast<uint32_t>(sample_rate / fps);
  window_s_ = static_cast<double>(window_ms) / 1e3;
  frames_ = std::move(frames);
  borrowed_.assign(frames_->slots, false);
  state_ = State::open;
  if (opened_) {  // again
    auto event = std::make_unique<Event>(EF_EVENT_RECOVERED);
    event->seconds = std::chrono::duration<double>(Clock::now() - lost_at_).count();
    queue(std::move(event));
  }
  opened_ = true;
}

void Session::handle_frame(Reader& r) {
  const int64_t turn = r.integer(), slot = r.integer(), pts = r.integer();
  const double time_s = r.real();
  const bool idle = r.boolean(), held = r.boolean();
  if (!r.ok() || !sane(pts) || !sane(turn) || state_ != State::open || slot < 0 || slot >= frames_->slots || borrowed_[static_cast<size_t>(slot)])
    return fail({EF_VERSION, "the engine sent a frame that makes no sense: use a library and an engine of one version"});
  borrowed_[static_cast<size_t>(slot)] = true;
  if (static_cast<uint64_t>(turn) + turn_base_ != turn_) return release_slot(static_cast<uint32_t>(slot), frames_.get());
  auto event = std::make_unique<Event>(EF_EVENT_VIDEO);
  event->memory = frames_;
  event->slot = static_cast<uint32_t>(slot);
  event->rgb = frames_->base + event->slot * frames_->slot_bytes;
  event->width = frames_->width;
  event->height = frames_->height;
  event->turn = turn_;
  event->pts = pts + pts_base_;
  event->time_s = time_s + static_cast<double>(pts_base_) / sample_rate_;
  event->idle = idle;
  event->held = held;
  next_pts_ = std::max(next_pts_, event->pts + samples_per_frame_);
  last_idle_ = idle;
  queue(std::move(event));
}

void Session::handle_audio(Reader& r) {
  const int64_t turn = r.integer(), pts = r.integer();
  const double time_s = r.real();
  const int64_t rate = r.integer(), channels = r.integer(), format = r.integer();
  const std::string_view data = r.bytes();
  const size_t sample_bytes = format == EF_INT16 ? 2 : 4;
  if (!r.ok() || !sane(pts) || !sane(turn) || rate <= 0 || rate > 192000 || channels < 1 || channels > 2 || (format != EF_INT16 && format != EF_FLOAT32) ||
      data.size() % (sample_bytes * static_cast<size_t>(channels)))
    return fail({EF_VERSION, "the engine sent audio that makes no sense: use a library and an engine of one version"});
  if (static_cast<uint64_t>(turn) + turn_base_ != turn_) return;
  auto event = std::make_unique<Event>(EF_EVENT_AUDIO);
  event->data = data;
  event->sample_count = data.size() / (sample_bytes * static_cast<size_t>(channels));
  event->sample_format = static_cast<int>(format);
  event->rate_hz = static_cast<uint32_t>(rate);
  event->channels = static_cast<uint32_t>(channels);
  event->turn = turn_;
  event->pts = pts + pts_base_;
  event->time_s = time_s + static_cast<double>(pts_base_) / sample_rate_;
  if (!last_idle_ && !segments_.empty()) {
    Segment& s = segments_.front();
    s.shown_s = std::min(s.pushed_s, s.shown_s + static_cast<double>(event->sample_count) / event->rate_hz);
  }
  queue(std::move(event));
}

void Session::handle_segment(Reader& r) {
  auto event = std::make_unique<Event>(EF_EVENT_SEGMENT_END);
  event->segment = static_cast<uint64_t>(r.integer()) + segment_base_;
  event->pushed_s = r.real();
  event->shown_s = r.real();
  event->interrupted = r.boolean();
  while (!segments_.empty() && segments_.front().number <= event->segment) segments_.pop_front();
  queue(std::move(event));
}

void Session::handle_ack(Reader& r) {
  if (static_cast<uint64_t>(r.integer()) + turn_base_ != turn_) return;
  auto samples = static_cast<size_t>(std::max<int64_t>(0, r.integer()));
  while (samples && !unacknowledged_.empty()) {
    Chunk& chunk = unacknowledged_.front();
    const size_t part = std::min(samples, chunk.samples);
    samples -= part;
    chunk.samples -= part;
    if (!chunk.samples) unacknowledged_.pop_front();
  }
  changed_.notify_all();
}

void Session::handle_stats(Reader& r) {
  answered_ = r.integer();
  for (uint64_t* each : {&stats_.frames, &stats_.idle_frames, &stats_.held_frames, &stats_.underruns, &stats_.dropped_frames})
    *each = static_cast<uint64_t>(r.integer());
  stats_.queued_s = r.real();
  stats_.block_ms = r.real();
  stats_.first_frame_s = r.real();
  const int64_t position = r.integer();
  stats_.position = sane(position) ? position + pts_base_ : -1;
  for (uint64_t* each : {&stats_.level, &stats_.level_changes, &stats_.repeated_frames}) *each = static_cast<uint64_t>(r.integer());
  changed_.notify_all();
}

// ends

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
  if (state_ != State::opening && state_ != State::greeting) {
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
  itimerspec when{};
  when.it_value.tv_nsec = std::chrono::nanoseconds(kRetry).count();
  ::timerfd_settime(timer_, 0, &when, nullptr);
}

void Session::try_again() {
  const Time now = Clock::now();
  if (now < next_try_) return;
  clear_event(timer_);
  if (now > lost_end_)
    return fail({EF_LOST, "the engine did not come back in " + std::to_string(engine_->timeout_ms()) + " ms: open another session"});
  if (connect()) lose("the engine went away");
}

// what is waited for

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

void Session::queue(std::unique_ptr<Event> event) {
  events_.push_back(std::move(event));
  if (!ready_set_) set_event(ready_);
  ready_set_ = true;
}

void Session::drop_media() {
  std::deque<std::unique_ptr<Event>> kept;
  for (auto& event : events_) {
    if (event->type == EF_EVENT_VIDEO) release_slot(event->slot, event->memory.get());
    if (event->type != EF_EVENT_VIDEO && event->type != EF_EVENT_AUDIO) kept.push_back(std::move(event));
  }
  events_ = std::move(kept);
}

// Until done(), or the session ends, a cancel comes, or the time is over.
template <class Done>
Error Session::wait(Lock& lock, Time end, Done done) {
  const uint64_t cancels = cancels_;
  ++waiters_;
  Error result;
  while (true) {
    io();
    if (leader_) set_event(nudge_);  // what we read may be what the leader waits for
    if (done()) break;
    if (state_ == State::closed) {
      result = {EF_CLOSED, "the session is closed: open another"};
      break;
    }
    const Time now = Clock::now();
    if (now >= end) {
      result = {EF_TIMEOUT, "nothing came in time"};
      break;
    }
    if (cancels_ != cancels || cancel_next_) {
      cancel_next_ = false;
      result = {EF_CANCELLED, "the call was cancelled"};
      break;
    }
    if (leader_) {
      changed_.wait_until(lock, end);
      continue;
    }
    leader_ = true;
    Time until = end;
    if (state_ == State::lost) until = std::min(until, next_try_);
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

// calls

Error Session::check_open() const {
  if (state_ == State::closed) return error_ ? error_ : Error{EF_CLOSED, "the session is closed: open another"};
  if (draining_) return {EF_CLOSED, "the session is closing: open another"};
  return {};
}

Error Session::send(Writer& writer) {
  if (state_ == State::lost || state_ == State::opening || state_ == State::greeting) return {};  // there is nothing there that it concerns
  if (channel_.waiting() > kMostWaiting) return {EF_UNAVAILABLE, "the engine reads nothing: look at its log"};
  channel_.queue(writer.message());
  io();
  if (leader_) nudge();
  return {};
}

Error Session::push(const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels, uint32_t timeout_ms,
                    size_t& accepted) {
  accepted = 0;
  if (format != EF_INT16 && format != EF_FLOAT32) return {EF_BAD_INPUT, "the sample format is unknown: push EF_INT16 or EF_FLOAT32"};
  if (channels < 1 || channels > 2) return {EF_BAD_INPUT, "audio of " + std::to_string(channels) + " channels cannot be used: push 1 or 2"};
  if (rate_hz < 8000 || rate_hz > 192000)
    return {EF_BAD_INPUT, "audio at " + std::to_string(rate_hz) + " Hz cannot be used: push 8000 to 192000 Hz"};
  if (!samples && count) return {EF_BAD_INPUT, "samples is NULL: pass a pointer, or a count of 0"};
  if (format == EF_FLOAT32) {
    const float* values = static_cast<const float*>(samples);
    float peak = 0;
    bool finite = true;
    for (size_t i = 0; i < count * channels; ++i) {
      finite &= std::isfinite(values[i]);
      peak = std::max(peak, std::fabs(values[i]));
    }
    if (!finite) return {EF_BAD_INPUT, "the audio holds values that are not finite: repair it before pushing"};
    if (peak > kPeak)
      return {EF_BAD_INPUT, "float audio with a peak of " + std::to_string(static_cast<int64_t>(peak)) + " is not in -1..1: divide it by 32768, or push int16"};
  }
  const Time end = after(timeout_ms);
  const size_t sample_bytes = (format == EF_INT16 ? 2 : 4) * channels;
  Lock lock(mutex_);
  while (true) {
    if (Error error = check_open()) return error;
    if (rate_hz_ && count && (rate_hz_ != rate_hz || channels_ != channels || format_ != format))
      return {EF_BAD_INPUT, "audio at " + std::to_string(rate_hz) + " Hz, or its form, differs from the rest of its segment at " +
                                std::to_string(rate_hz_) + " Hz: end the segment first"};
    const auto room = [&]() -> size_t {
      if (state_ != State::open) return 0;
      double waiting_s = 0;
      for (const Chunk& chunk : unacknowledged_) waiting_s += static_cast<double>(chunk.samples) / chunk.rate_hz;
      return static_cast<size_t>(std::max(0.0, window_s_ - waiting_s) * rate_hz);
    };
    while (accepted < count && state_ == State::open) {
      const size_t part = std::min({count - accepted, room(), kChunkBytes / sample_bytes});
      if (!part) break;
      if (!rate_hz_) {
        rate_hz_ = rate_hz;
        channels_ = channels;
        format_ = format;
        segments_.push_back({++segment_count_, rate_hz, 0, 0});
      }
      segments_.back().pushed_s += static_cast<double>(part) / rate_hz;
      unacknowledged_.push_back({part, rate_hz});
      Writer chunk(kAudioChunk, 5);
      chunk.unsigned_integer(turn_ - turn_base_).integer(rate_hz).integer(channels).integer(format);
      chunk.bytes(static_cast<const uint8_t*>(samples) + accepted * sample_bytes, part * sample_bytes);
      accepted += part;
      if (Error error = send(chunk)) return error;
    }
    if (accepted == count) return check_open();
    Error waited = wait(lock, end, [&] { return room() > 0; });
    if (waited.status == EF_TIMEOUT) waited.text = "the engine has no room for more audio yet: push the rest again later";
    if (waited && waited.status != EF_CLOSED) return waited;
  }
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

Error Session::poll(uint32_t timeout_ms, const ef_event*& out) {
  std::unique_ptr<Event> event;
  {
    Lock lock(mutex_);
    if (state_ == State::closed && events_.empty()) return {EF_CLOSED, "the session is closed: open another"};
    if (events_.empty())
      if (Error error = wait(lock, after(timeout_ms), [this] { return !events_.empty(); })) {
        if (error.status != EF_CLOSED || events_.empty()) return error;
      }
    event = std::move(events_.front());
    events_.pop_front();
    if (events_.empty() && state_ != State::closed) {
      clear_event(ready_);
      ready_set_ = false;
    }
    if (event->type == EF_EVENT_VIDEO && config_.format != EF_RGB24 && !spare_pixels_.empty()) {
      event->pixels = std::move(spare_pixels_.back());
      spare_pixels_.pop_back();
    }
  }
  if (event->type == EF_EVENT_VIDEO) {
    event->session = shared_from_this();
    event->format = config_.format;
    event->plane[0] = event->rgb;
    event->stride[0] = 3 * static_cast<size_t>(event->width);
    if (config_.format != EF_RGB24) {
      ef_image image{};
      image.format = config_.format;
      image.width = event->width;
      image.height = event->height;
      size_t total = 0;
      for (int p = 0; p < plane_count(image.format); ++p)
        total += row_bytes(image.format, p, image.width) * plane_rows(image.format, p, image.height);
      event->pixels.resize(total);
      uint8_t* at = event->pixels.data();
      for (int p = 0; p < plane_count(image.format); ++p) {
        event->plane[p] = image.plane[p] = at;
        event->stride[p] = image.stride[p] = row_bytes(image.format, p, image.width);
        at += image.stride[p] * plane_rows(image.format, p, image.height);
      }
      convert(event->rgb, image);
    }
    event->matrix = config_.format == EF_NV12 || config_.format == EF_I420;
  } else if (event->type == EF_EVENT_AUDIO) {
    event->samples = event->data.data();
  } else {
    event->text = event->data.c_str();
  }
  out = event.release();
  return {};
}

void Session::give_back(const Event& event) {
  Lock lock(mutex_);
  if (!event.pixels.empty() && spare_pixels_.size() < kMostSlots) spare_pixels_.push_back(std::move(const_cast<Event&>(event).pixels));
  release_slot(event.slot, event.memory.get());
  if (leader_) nudge();
}

void Session::release_slot(uint32_t slot, const Frames* of) {
  if (of != frames_.get() || state_ != State::open) return;  // of an engine that is gone
  borrowed_[slot] = false;
  Writer release(kSlotRelease, 1);
  channel_.queue(release.integer(slot).message());
  if (!channel_.flush()) return;  // the next reading sees it
  watch();
}

Error Session::stats(uint32_t timeout_ms, ef_stats& out) {
  Lock lock(mutex_);
  if (state_ == State::closed) return check_open();
  const int64_t number = ++asked_;
  Writer request(kStatsRequest, 1);
  if (Error error = send(request.integer(number))) return error;
  if (Error error = wait(lock, after(timeout_ms), [&] { return answered_ >= number || state_ == State::lost; })) return error;
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
  Lock lock(mutex_);
  if (state_ == State::closed) return {};
  Writer request(kCloseRequest, 1);
  request.integer(drain_ms);
  if (drain_ms) {
    if (draining_) return {};
    const Error error = send(request);
    draining_ = true;
    drain_end_ = after(drain_ms) + kAfterDrain;
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
  Lock lock(mutex_);
  for (int* each : {&pollable_, &ready_, &nudge_, &timer_}) {
    if (*each >= 0) ::close(*each);
    *each = -1;
  }
}

}  // namespace everface::client
