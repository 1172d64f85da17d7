// Audio in, as far as the engine has room.
#include <algorithm>
#include <cmath>

#include "protocol.h"
#include "session.h"

namespace everface::client {
namespace {

constexpr size_t kChunkBytes = 1 << 18;
constexpr float kPeak = 8.0f;

Error check(const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels) {
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
  return {};
}

size_t size_of(int format) { return format == EF_INT16 ? 2 : 4; }

}  // namespace

Error Session::push(const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels, uint32_t timeout_ms,
                    size_t& accepted) {
  accepted = 0;
  if (Error error = check(samples, count, format, rate_hz, channels)) return error;
  const Time end = after(timeout_ms);
  const size_t sample_bytes = size_of(format) * channels;
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
      if (Error error = check_backlog()) return error;
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

Error Session::push_user_audio(const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels) {
  if (Error error = check(samples, count, format, rate_hz, channels)) return error;
  const size_t sample_bytes = size_of(format) * channels;
  Lock lock(mutex_);
  if (Error error = check_open()) return error;
  if (state_ == State::open && !listens_)
    return {EF_BAD_INPUT, "the engine's weights were not trained to listen: push what the person says itself, or use weights that listen"};
  for (size_t done = 0; done < count;) {
    const size_t part = std::min(count - done, kChunkBytes / sample_bytes);
    if (Error error = check_backlog()) return error;
    Writer chunk(kUserAudio, 4);
    chunk.integer(rate_hz).integer(channels).integer(format);
    if (Error error = send(chunk.bytes(static_cast<const uint8_t*>(samples) + done * sample_bytes, part * sample_bytes))) return error;
    done += part;
  }
  return {};
}

}  // namespace everface::client
