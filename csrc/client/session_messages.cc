// What the engine says.
#include <algorithm>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol.h"
#include "session.h"

namespace everface::client {
namespace {

constexpr uint32_t kMostSide = 8192;

// A count that an engine sent. More than any session reaches would overflow sums.
bool sane(int64_t count) { return count >= 0 && count < int64_t{1} << 53; }

}  // namespace

void Session::read_messages() {
  bool broken = false;
  size_t size = 0;
  while (state_ != State::closed && state_ != State::lost) {
    const uint8_t* data = channel_.next(size, broken);
    if (broken) return fail({EF_VERSION, "the engine sent what is no message: use a library and an engine of one version"});
    if (!data) return;
    ++messages_read_;
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
    case kQualityNotice:
      event = std::make_unique<Event>(EF_EVENT_QUALITY);
      event->level = static_cast<uint64_t>(std::max<int64_t>(0, r.integer()));
      event->data = r.text();
      event->time_s = r.real() + static_cast<double>(pts_base_) / sample_rate_;
      break;
    case kErrorNotice: {
      const auto status = r.integer();
      fail({status >= EF_BAD_INPUT && status <= EF_LOST ? static_cast<ef_status>(status) : EF_UNAVAILABLE, std::string(r.text())});
      return;
    }
    case kClosedNotice: finish(); return;
    case kAudioAck: handle_ack(r); break;
    case kStatsReply: handle_stats(r); break;
    case kChangeReply: handle_change(r); break;
    default: break;  // of a newer engine
  }
  if (!r.ok() && state_ != State::closed) return fail({EF_VERSION, "the engine sent a message that cannot be read: use a library and an engine of one version"});
  if (event) queue(std::move(event));
}

void Session::handle_hello(Reader& r) {
  const int64_t major = r.integer();
  engine_minor_ = r.integer();
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
  const std::string_view handle = r.bytes();  // of a GPU's memory
  const std::string_view remark = r.text();
  const bool listens = r.boolean();
  const int descriptor = channel_.take_passed();
  struct stat memory {};
  const bool fits = r.ok() && state_ == State::opening && descriptor >= 0 && width > 0 && width <= kMostSide && height > 0 &&
                    height <= kMostSide && slots > 0 && slots <= kMostSlots && slot_bytes >= 3 * width * height &&
                    slot_bytes <= 4 * int64_t{kMostSide} * kMostSide && sample_rate > 0 && sample_rate <= 192000 && fps > 0 && fps <= 240 &&
                    window_ms > 0 && window_ms <= 60000 && (!gpu_.empty() || (::fstat(descriptor, &memory) == 0 && memory.st_size >= slots * slot_bytes)) &&
                    (!frames_ || (frames_->width == width && frames_->height == height));
  if (fits && !gpu_.empty()) {
    if (Error error = open_gpu_memory(handle, config_.cuda_device, descriptor, frames->cuda)) return fail(error);
  } else if (fits) {
    frames->size = static_cast<size_t>(slots * slot_bytes);
    void* base = ::mmap(nullptr, frames->size, PROT_READ, MAP_SHARED, descriptor, 0);
    if (base != MAP_FAILED) frames->base = static_cast<const uint8_t*>(base);
  }
  if (descriptor >= 0 && !frames->cuda) ::close(descriptor);
  if (!frames->base && !frames->cuda) return fail({EF_VERSION, "the engine opened a session that makes no sense: use a library and an engine of one version"});
  frames->width = static_cast<uint32_t>(width);
  frames->height = static_cast<uint32_t>(height);
  frames->slots = static_cast<uint32_t>(slots);
  frames->slot_bytes = static_cast<size_t>(slot_bytes);
  sample_rate_ = static_cast<uint32_t>(sample_rate);
  samples_per_frame_ = static_cast<uint32_t>(sample_rate / fps);
  window_s_ = static_cast<double>(window_ms) / 1e3;
  remark_ = remark;
  listens_ = listens;
  frames_ = std::move(frames);
  borrowed_.assign(frames_->slots, false);
  state_ = State::open;
  if (opened_) {  // again
    disarm();
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
  if (frames_->cuda) {
    event->cuda_data = frames_->cuda->base() + event->slot * frames_->slot_bytes;
    event->cuda_pitch = 3 * static_cast<size_t>(frames_->width);
    event->cuda_device = config_.cuda_device;
  } else {
    event->rgb = frames_->base + event->slot * frames_->slot_bytes;
  }
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
  for (uint64_t* each : {&stats_.level, &stats_.level_changes, &stats_.repeated_frames, &stats_.refill_frames}) *each = static_cast<uint64_t>(r.integer());
  changed_.notify_all();
}

}  // namespace everface::client
