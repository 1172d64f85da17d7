// Events on their way to the caller, and back.
#include <sys/mman.h>

#include "color.h"
#include "event_descriptor.h"
#include "protocol.h"
#include "session.h"

namespace everface::client {

Frames::~Frames() {
  if (base) ::munmap(const_cast<uint8_t*>(base), size);
}

Event::Event(ef_event_type kind) : ef_event{} {
  struct_size = sizeof(ef_event);
  type = kind;
  cuda_device = -1;
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
  if (events_.empty() && ready_set_) {
    clear_event(ready_);
    ready_set_ = false;
  }
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
    event->stride[0] = event->rgb ? 3 * static_cast<size_t>(event->width) : 0;
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
  if (forked()) return;
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
  // Each message wakes the engine, so while the caller has more to poll, some go together. Whoever waits sends them.
  if (++unsent_releases_ < frames_->slots / 2 && !events_.empty()) return;
  unsent_releases_ = 0;
  if (!channel_.flush()) return;  // the next reading sees it
  watch();
}

}  // namespace everface::client
