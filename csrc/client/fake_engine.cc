#include "fake_engine.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <poll.h>
#include <string>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "event_descriptor.h"
#include "everface.h"
#include "msgpack.h"
#include "protocol.h"

namespace everface::client {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kRate = 16000, kFrame = 640, kFps = 25, kWindowMs = 10000;
constexpr auto kFrameTime = std::chrono::milliseconds(40);
constexpr auto kStall = std::chrono::milliseconds(500);
constexpr uint32_t kWidth = 128, kHeight = 96, kMostSide = 4096, kMostSlots = 64;

struct Segment {
  int64_t number, rate, channels, format, pushed = 0, given = 0;  // in samples of its own
  int64_t frame = 0;                                              // given out
  std::string audio;                                              // from sample `given` on
  bool ended = false;
  size_t bytes() const { return static_cast<size_t>(channels) * (format == EF_INT16 ? 2 : 4); }
  double seconds(int64_t samples) const { return static_cast<double>(samples) / static_cast<double>(rate); }
};

// One connection. Everything happens in its one thread.
class FakeClient {
 public:
  FakeClient(int descriptor, int wake) : wake_(wake) { channel_.open(descriptor); }
  ~FakeClient() {
    if (base_) ::munmap(base_, slots_ * slot_bytes_);
  }

  void run() {
    while (!over_) {
      pollfd watched[2] = {{wake_, POLLIN, 0}, {channel_.descriptor(), static_cast<short>(POLLIN | (channel_.waiting() ? POLLOUT : 0)), 0}};
      ::poll(watched, 2, wait_ms());
      if (watched[0].revents) return;
      const bool alive = channel_.fill();
      read();
      if (!over_ && open_) work();
      if (!channel_.flush() || !alive) return;
    }
    for (int i = 0; i < 100 && channel_.waiting() && channel_.flush(); ++i) ::usleep(1000);
  }

 private:
  int wait_ms() const {
    if (!open_) return 1000;
    if (can_give()) return paced_ && due_set_ ? std::max(0, static_cast<int>((due_ - Clock::now()) / std::chrono::milliseconds(1))) : 0;
    return idle_ ? 10 : 200;
  }

  void send(Writer& message) { channel_.queue(message.message()); }

  void refuse(int status, const char* text) {
    Writer error(kErrorNotice, 2);
    send(error.integer(status).text(text));
    if (open_) send_closed();
    over_ = true;
  }

  void send_closed() {
    Writer closed(kClosedNotice, 0);
    send(closed);
    over_ = true;
  }

  void read() {
    size_t size = 0;
    bool broken = false;
    while (!over_) {
      const uint8_t* data = channel_.next(size, broken);
      if (broken) return refuse(EF_BAD_INPUT, "a message is too long: use another version of the library");
      if (!data) return;
      Reader r(data, size);
      handle(static_cast<int>(r.integer(-1)), r);
      if (!r.ok() && !over_) refuse(EF_BAD_INPUT, "a message cannot be read: use another version of the library");
    }
  }

  void handle(int tag, Reader& r) {
    if (tag == kClientHello) {
      const bool ours = r.text() == kMagic && r.integer() == kMajor;
      Writer hello(kEngineHello, 4);
      send(hello.integer(kMajor).integer(kMinor).text("fake").integer(::getpid()));
      if (!ours) refuse(EF_VERSION, "the library speaks another protocol: use another version of it");
    } else if (tag == kOpenRequest && !open_) {
      open(r);
    } else if (!open_) {
      refuse(EF_BAD_INPUT, "a message came before a session was opened: use another version of the library");
    } else if (tag == kAudioChunk) {
      audio(r);
    } else if (tag == kEndSegmentRequest) {
      if (!segments_.empty()) segments_.back().ended = true;
    } else if (tag == kInterruptRequest) {
      interrupt(r.integer());
    } else if (tag == kSlotRelease) {
      const int64_t slot = r.integer();
      if (slot < 0 || slot >= static_cast<int64_t>(slots_) || free_[static_cast<size_t>(slot)])
        return refuse(EF_BAD_INPUT, "a slot was released that is not borrowed: release each frame once");
      free_[static_cast<size_t>(slot)] = true;
    } else if (tag == kStatsRequest) {
      stats(r.integer());
    } else if (tag == kChangeRequest) {
      change(r);
    } else if (tag == kUserAudio) {
      user_audio(r);
    } else if (tag == kCloseRequest) {
      if (r.integer() <= 0) return send_closed();
      draining_ = true;
      if (!segments_.empty()) segments_.back().ended = true;
    }
  }

  void open(Reader& r) {
    const std::string image(r.text());
    seed_ = r.integer();
    idle_ = r.boolean();
    paced_ = r.boolean();
    playback_hz_ = r.integer(24000);
    const int64_t outbox_ms = r.integer(2000), slots = r.integer();
    int64_t width = r.integer(), height = r.integer();
    r.text();  // the prompt
    const bool on_gpu = !r.text().empty();
    if (!r.ok()) return;
    if (on_gpu) return refuse(EF_BAD_INPUT, "the fake engine has no GPU: leave config.cuda_device at -1");
    if (image.empty()) return refuse(EF_BAD_INPUT, "no image is named: set the path of one");
    if (!width && !height) {
      width = kWidth;
      height = kHeight;
    }
    if (width <= 0 || height <= 0 || width > kMostSide || height > kMostSide) return refuse(EF_BAD_INPUT, "the size cannot be used: choose 1x1 to 4096x4096");
    if (playback_hz_ < 8000 || playback_hz_ > 192000) return refuse(EF_BAD_INPUT, "playback_hz cannot be used: choose 8000 to 192000");
    if (slots < 0 || slots == 1 || slots > kMostSlots) return refuse(EF_BAD_INPUT, "so many slots cannot be used: choose 2 to 64, or 0");
    width_ = static_cast<size_t>(width);
    height_ = static_cast<size_t>(height);
    slots_ = static_cast<size_t>(slots ? slots : std::min<int64_t>(8, std::max<int64_t>(2, outbox_ms / 80)));
    slot_bytes_ = (3 * width_ * height_ + 4095) / 4096 * 4096;
    const int memory = ::memfd_create("everface frames", MFD_CLOEXEC);
    if (memory < 0 || ::ftruncate(memory, static_cast<off_t>(slots_ * slot_bytes_)) != 0) return refuse(EF_NO_MEMORY, "there is no memory for frames");
    void* base = ::mmap(nullptr, slots_ * slot_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (base == MAP_FAILED) return refuse(EF_NO_MEMORY, "there is no memory for frames");
    base_ = static_cast<uint8_t*>(base);
    free_.assign(slots_, true);
    channel_.flush();
    Writer reply(kOpenReply, 10);
    reply.integer(width).integer(height).integer(static_cast<int64_t>(slots_)).integer(static_cast<int64_t>(slot_bytes_));
    pass(reply.integer(kRate).integer(kFps).integer(kWindowMs).bytes("", 0).text("").boolean(true).message(), memory);
    ::close(memory);
    open_ = true;
  }

  void pass(const std::string& message, int descriptor) {
    if (!send_descriptor(channel_.descriptor(), message, descriptor)) over_ = true;
  }

  void audio(Reader& r) {
    const int64_t turn = r.integer(), rate = r.integer(), channels = r.integer(), format = r.integer();
    const std::string_view data = r.bytes();
    if (turn != turn_ || !r.ok() || draining_) return;
    if (rate < 8000 || rate > 192000 || channels < 1 || channels > 2 || format < 0 || format > 1)
      return refuse(EF_BAD_INPUT, "audio came in a form that the protocol does not know: use another version of the library");
    if (segments_.empty() || segments_.back().ended) {
      Segment segment;
      segment.number = ++count_;
      segment.rate = rate;
      segment.channels = channels;
      segment.format = format;
      segments_.push_back(std::move(segment));
    }
    Segment& s = segments_.back();
    const int64_t samples = static_cast<int64_t>(data.size() / s.bytes());
    if (s.rate != rate || s.channels != channels || s.format != format || data.size() % s.bytes() || s.seconds(s.pushed - s.given) > 2 * kWindowMs / 1e3)
      return refuse(EF_BAD_INPUT, "audio came in another form, or too much of it: use another version of the library");
    s.audio += data;
    s.pushed += samples;
    pushed_ = Clock::now();
    Writer ack(kAudioAck, 2);
    if (s.seconds(s.pushed - s.given) <= kWindowMs / 1e3) {
      send(ack.integer(turn_).integer(samples));
    } else {
      owed_ += samples;
    }
  }

  // Another image is seen in the third color: it is another seed's.
  void change(Reader& r) {
    const int64_t number = r.integer();
    const std::string image(r.text());
    if (!r.ok()) return;
    const bool there = image.empty() || ::access(image.c_str(), R_OK) == 0;
    if (there && !image.empty()) seed_ += 100;
    Writer reply(kChangeReply, 4);
    send(reply.integer(number).integer(there ? EF_OK : EF_BAD_INPUT).text(there ? "" : image + " is not there: name another image").text(""));
  }

  void user_audio(Reader& r) {
    const int64_t rate = r.integer(), channels = r.integer(), format = r.integer();
    const std::string_view data = r.bytes();
    const bool known = rate >= 8000 && rate <= 192000 && (channels == 1 || channels == 2) && (format == EF_INT16 || format == EF_FLOAT32);
    if (r.ok() && (!known || data.size() % static_cast<size_t>(channels * (format == EF_INT16 ? 2 : 4))))
      refuse(EF_BAD_INPUT, "audio came in a form that the protocol does not know: use another version of the library");
  }

  void interrupt(int64_t turn) {
    for (const Segment& s : segments_) end_segment(s, true);
    segments_.clear();
    owed_ = 0;
    turn_ = turn;
  }

  void end_segment(const Segment& s, bool interrupted) {
    Writer notice(kSegmentNotice, 4);
    send(notice.integer(s.number).real(s.seconds(s.pushed)).real(s.seconds(s.given)).boolean(interrupted));
  }

  // Samples of the segment that the next frame shows.
  int64_t next_samples(const Segment& s) const {
    return (s.frame + 1) * kFrame * s.rate / kRate - s.given;
  }

  bool speaks() const {
    if (segments_.empty()) return false;
    const Segment& s = segments_.front();
    return s.ended ? s.given < s.pushed : s.pushed - s.given >= next_samples(s);
  }

  bool can_give() const { return std::find(free_.begin(), free_.end(), true) != free_.end() && (speaks() || (idle_ && !draining_ && !feeding())); }

  bool feeding() const { return !segments_.empty() && !segments_.front().ended && Clock::now() - pushed_ < kStall; }

  void work() {
    while (true) {
      while (!segments_.empty() && segments_.front().ended && segments_.front().given >= segments_.front().pushed) {
        end_segment(segments_.front(), false);
        segments_.pop_front();
      }
      if (draining_ && segments_.empty()) return send_closed();
      if (idle_ && !segments_.empty() && !speaks() && !segments_.front().ended && !feeding()) {
        segments_.front().ended = true;  // paused
        continue;
      }
      if (!can_give()) return;
      const auto now = Clock::now();
      if (paced_ && due_set_ && now < due_) return;
      give();
      due_ = paced_ && due_set_ && now - due_ < std::chrono::seconds(1) ? due_ + kFrameTime : now + kFrameTime;
      due_set_ = true;
    }
  }

  void give() {
    const auto slot = static_cast<size_t>(std::find(free_.begin(), free_.end(), true) - free_.begin());
    free_[slot] = false;
    const bool idle = !speaks();
    draw(base_ + slot * slot_bytes_);
    const double time_s = static_cast<double>(pts_) / kRate;
    Writer frame(kFrameNotice, 6);
    send(frame.integer(turn_).integer(static_cast<int64_t>(slot)).integer(pts_).real(time_s).boolean(idle).boolean(false));
    Writer audio(kAudioNotice, 7);
    audio.integer(turn_).integer(pts_).real(time_s);
    if (idle) {
      const std::string silence(static_cast<size_t>(playback_hz_ / kFps) * 2, '\0');
      audio.integer(playback_hz_).integer(1).integer(EF_INT16).bytes(silence.data(), silence.size());
      send(audio);
      ++idle_frames_;
    } else {
      Segment& s = segments_.front();
      const int64_t samples = next_samples(s), there = std::min(samples, s.pushed - s.given);
      std::string data = s.audio.substr(0, static_cast<size_t>(there) * s.bytes());
      s.audio.erase(0, data.size());
      s.given += there;
      ++s.frame;
      data.resize(static_cast<size_t>(samples) * s.bytes());
      send(audio.integer(s.rate).integer(s.channels).integer(s.format).bytes(data.data(), data.size()));
      if (const int64_t part = std::min(owed_, there)) {
        owed_ -= part;
        Writer ack(kAudioAck, 2);
        send(ack.integer(turn_).integer(part));
      }
    }
    pts_ += kFrame;
    ++frames_;
  }

  void draw(uint8_t* out) const {
    const int64_t n = pts_ / kFrame;
    for (size_t y = 0; y < height_; ++y)
      for (size_t x = 0; x < width_; ++x) {
        *out++ = static_cast<uint8_t>(static_cast<int64_t>(x) + 2 * n);
        *out++ = static_cast<uint8_t>(y);
        *out++ = static_cast<uint8_t>(seed_ + n);
      }
  }

  void stats(int64_t number) {
    double queued_s = 0;
    for (const Segment& s : segments_) queued_s += s.seconds(s.pushed - s.given);
    Writer reply(kStatsReply, 14);
    reply.integer(number).integer(frames_).integer(idle_frames_).integer(0).integer(0).integer(0).real(queued_s).real(-1).real(-1);
    send(reply.integer(pts_ + static_cast<int64_t>(queued_s * kRate)).integer(0).integer(0).integer(0).integer(0));
  }

  Channel channel_;
  const int wake_;
  bool open_ = false, over_ = false, draining_ = false, idle_ = false, paced_ = false, due_set_ = false;
  int64_t seed_ = 0, playback_hz_ = 24000, turn_ = 0, count_ = 0, owed_ = 0, pts_ = 0, frames_ = 0, idle_frames_ = 0;
  size_t width_ = 0, height_ = 0, slots_ = 0, slot_bytes_ = 0;
  uint8_t* base_ = nullptr;
  std::vector<bool> free_;
  std::deque<Segment> segments_;
  Clock::time_point due_{}, pushed_{};
};

}  // namespace

FakeEngine::~FakeEngine() {
  for (Served& served : served_) set_event(served.wake);
  for (Served& served : served_) end(served);
}

void FakeEngine::end(Served& served) {
  served.thread.join();
  ::close(served.wake);
}

void FakeEngine::serve(int descriptor) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto each = served_.begin(); each != served_.end();) {  // what earlier sessions left
    if (each->over) end(*each);
    each = each->over ? served_.erase(each) : std::next(each);
  }
  std::list<Served> made(1);
  Served& served = made.front();
  served.wake = ::eventfd(0, EFD_CLOEXEC);
  served.thread = std::thread([descriptor, &served] {
    FakeClient(descriptor, served.wake).run();
    served.over = true;
  });
  served_.splice(served_.end(), made);
}

}  // namespace everface::client
