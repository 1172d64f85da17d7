#include "protocol_ends.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "engine.h"
#include "everface.h"
#include "fake_engine.h"
#include "session.h"

namespace everface::client {
namespace {

constexpr int kSlots = 4, kSlotBytes = 4096;
constexpr int kEndMs = 20000;

// Gives one connection: a socket that holds all bytes already.
class BytesEngine : public Engine {
 public:
  BytesEngine(const ef_engine_config& config, const FromEngine& from) : Engine(config), from_(from) {}
  ~BytesEngine() override {
    if (ours_ >= 0) ::close(ours_);
  }
  int connect(Error& error) override {
    int ends[2];
    if (connected_ || ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) {
      error = {EF_LOST, "gone"};
      return -1;
    }
    connected_ = true;
    ours_ = ends[0];
    const int memory = ::memfd_create("fuzz", MFD_CLOEXEC);
    if (from_.sized) [[maybe_unused]] const int done = ::ftruncate(memory, kSlots * kSlotBytes);
    if (from_.passes && !from_.bytes.empty())
      send_descriptor(ours_, from_.bytes, memory, MSG_DONTWAIT);
    else
      [[maybe_unused]] const ssize_t sent = ::send(ours_, from_.bytes.data(), from_.bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    ::close(memory);
    if (from_.ends) {
      ::close(ours_);
      ours_ = -1;
    }
    return ends[1];
  }

 private:
  const FromEngine& from_;
  int ours_ = -1;
  bool connected_ = false;
};

}  // namespace

void feed_client(const FromEngine& from, Random& random) {
  ef_engine_config engine_config;
  ef_engine_config_defaults(&engine_config);
  engine_config.socket_path = "none";
  engine_config.timeout_ms = 0;
  ef_session_config config;
  ef_session_config_defaults(&config);
  config.image = "i";
  config.timeout_ms = 0;
  config.format = from.on_gpu ? EF_RGB24 : static_cast<int>(below(random, 4));
  config.cuda_device = from.on_gpu ? 0 : -1;
  const auto session = std::make_shared<Session>(std::make_shared<BytesEngine>(engine_config, from), config);
  if (session->open()) return;
  static const int16_t samples[64] = {};
  ef_change other;
  ef_change_defaults(&other);
  other.image = "j";
  uint64_t turn = 0;
  size_t taken = 0;
  for (int i = 0; i < 12; ++i) {
    const ef_event* event = nullptr;
    switch (below(random, 8)) {
      case 0: session->push(samples, 64, EF_INT16, 16000, 1, 0, taken); break;
      case 1: session->interrupt(turn); break;
      case 2: session->end_segment(); break;
      case 3: session->push_user_audio(samples, 64, EF_INT16, 16000, 1); break;
      case 4: session->change(other, 0); break;
      default:
        if (!session->poll(0, event)) {
          volatile uint8_t touched = event->type == EF_EVENT_VIDEO ? event->plane[0][event->stride[0] * event->height - 1] : uint8_t{0};
          (void)touched;
          if (event->type == EF_EVENT_AUDIO && event->sample_count) touched = *static_cast<const uint8_t*>(event->samples);
          ef_event_release(event);
        }
    }
  }
  session->close(static_cast<uint32_t>(below(random, 2)));
}

void feed_engine(const std::string& bytes, bool abrupt) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) std::abort();
  FakeEngine engine;
  engine.serve(ends[1]);
  [[maybe_unused]] const ssize_t sent = ::send(ends[0], bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (!abrupt) {
    ::shutdown(ends[0], SHUT_WR);
    char part[4096];
    pollfd watched{ends[0], POLLIN, 0};
    do {  // until the engine has read everything and closed its end
      int ready;
      while ((ready = ::poll(&watched, 1, kEndMs)) < 0 && errno == EINTR) continue;  // libFuzzer has an alarm
      if (ready != 1) {
        std::fprintf(stderr, "the fake engine does not end\n");
        std::abort();
      }
    } while (::recv(ends[0], part, sizeof part, 0) > 0);
  }
  ::close(ends[0]);
}

void feed(const uint8_t* data, size_t size) {
  if (size < 2) return;
  const uint8_t how = data[0];
  const std::string bytes(reinterpret_cast<const char*>(data + 2), size - 2);
  if (how & 1) return feed_engine(bytes, false);
  Random random(data[1]);
  feed_client({bytes, !(how & 2), !(how & 4), (how & 8) != 0, (how & 16) != 0}, random);
}

}  // namespace everface::client
