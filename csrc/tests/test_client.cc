// Seeded runs of libeverface, for sanitizers and for fuzzing.
//
//   test_client threads SEED COUNT [SOCKET [fake-cuda]]  sessions used from several threads at once, of the fake engine or of the one that listens
//                                            at SOCKET; fake-cuda: half of them with frames on a GPU that the fake CUDA runtime makes up
//   test_client client SEED COUNT            what an engine sends is changed at random: the client must end in order
//   test_client engine SEED COUNT            what a client sends is changed at random: the fake engine must end in order
//   test_client replay FILE...               inputs that were kept: tests/csrc/corpus
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "everface.h"
#include "msgpack.h"
#include "protocol.h"
#include "protocol_ends.h"

using namespace everface::client;

namespace {

[[noreturn]] void die(const char* what, uint64_t seed) {
  std::fprintf(stderr, "seed %llu: %s (%s)\n", static_cast<unsigned long long>(seed), what, ef_last_error());
  std::abort();
}

// threads

const char* engine_socket = nullptr;  // nullptr: the fake engine
bool on_gpu = false;

void play(uint64_t seed) {
  Random random(seed);
  ef_engine_config engine_config;
  ef_engine_config_defaults(&engine_config);
  engine_config.fake = !engine_socket;
  engine_config.socket_path = engine_socket;
  ef_engine* engine = nullptr;
  if (ef_engine_open(&engine_config, &engine)) die("no engine", seed);
  ef_session_config config;
  ef_session_config_defaults(&config);
  config.image = "face.png";
  config.idle = static_cast<int>(below(random, 2));
  config.paced = static_cast<int>(below(random, 2));
  config.format = static_cast<int>(below(random, 4));
  config.width = 2 + static_cast<uint32_t>(below(random, 76));
  config.height = 1 + static_cast<uint32_t>(below(random, 30));
  config.slots = 2 + static_cast<uint32_t>(below(random, 6));
  if (on_gpu && below(random, 2)) {
    config.cuda_device = static_cast<int>(below(random, 8));
    config.format = EF_RGB24;
  }
  ef_session* session = nullptr;
  if (ef_session_open(engine, &config, &session)) die("no session", seed);
  if (below(random, 2)) {
    ef_engine_free(engine);
    engine = nullptr;
  }
  std::atomic<bool> over{false};
  std::atomic<int> open_ends{0}, closed{0};
  const auto work = [&](uint64_t thread_seed, const std::function<void(Random&)>& what) {
    return std::thread([&over, thread_seed, what] {
      Random own(thread_seed);
      while (!over) what(own);
    });
  };
  std::vector<std::thread> threads;
  threads.push_back(work(random(), [&](Random& r) {
    std::vector<int16_t> samples(1 + below(r, 20000), 7);
    size_t taken = 0;
    const ef_status status = ef_session_push_audio(session, samples.data(), samples.size(), EF_INT16, 24000, 1, static_cast<uint32_t>(below(r, 20)), &taken);
    if (taken > samples.size() || (status == EF_OK && taken != samples.size())) die("a wrong count", seed);
    if (below(r, 4) == 0) ef_session_end_segment(session);
  }));
  threads.push_back(work(random(), [&](Random& r) {
    static thread_local std::vector<const ef_event*> kept;
    const ef_event* event = nullptr;
    const ef_status status = ef_session_poll(session, static_cast<uint32_t>(below(r, 20)), &event);
    if ((status == EF_OK) != (event != nullptr)) die("an event without a status", seed);
    if (event && closed) die("an event after the last", seed);
    if (event && event->type == EF_EVENT_CLOSED) ++closed;
    if (event && event->type == EF_EVENT_ERROR) die(event->text, seed);
    if (event && event->type == EF_EVENT_VIDEO) {
      if ((event->cuda_data != nullptr) != (config.cuda_device >= 0) || event->cuda_device != config.cuda_device) die("a frame in other memory", seed);
      const auto* data = event->cuda_data ? static_cast<const uint8_t*>(event->cuda_data) : event->plane[0];
      volatile uint8_t last = data[(event->cuda_data ? event->cuda_pitch : event->stride[0]) * event->height - 1];
      (void)last;
    }
    if (event) kept.push_back(event);
    if (kept.size() > below(r, 3) || over) {
      for (const ef_event* each : kept) ef_event_release(each);
      kept.clear();
    }
  }));
  threads.push_back(work(random(), [&](Random& r) {
    std::this_thread::sleep_for(std::chrono::milliseconds(below(r, 10)));
    uint64_t turn = 0;
    ef_stats stats;
    ef_stats_defaults(&stats);
    switch (below(r, 4)) {
      case 0: ef_session_interrupt(session, &turn); break;
      case 1: ef_session_cancel(session); break;
      case 2: ef_session_stats(session, 50, &stats); break;
      default: ef_session_fd(session);
    }
  }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20 + below(random, 60)));
  if (below(random, 2)) ef_session_close(session, static_cast<uint32_t>(below(random, 2)) * 500);
  if (below(random, 2)) std::this_thread::sleep_for(std::chrono::milliseconds(below(random, 30)));
  over = true;
  for (std::thread& thread : threads) thread.join();
  const ef_event* event = nullptr;
  for (int i = 0; i < 10000 && ef_session_poll(session, 0, &event) == EF_OK; ++i) ef_event_release(event);
  if (below(random, 2)) {
    ef_session_free(session);
    ef_engine_free(engine);
  } else {
    ef_engine_free(engine);
    ef_session_free(session);
  }
}

// fuzzing

void change(std::string& bytes, Random& random) {
  for (uint64_t n = below(random, 5); n > 0 && !bytes.empty(); --n) {
    const size_t at = below(random, bytes.size());
    switch (below(random, 6)) {
      case 0: bytes[at] = static_cast<char>(random()); break;
      case 1: bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(random, 8))); break;
      case 2: bytes.erase(at, 1 + below(random, 8)); break;
      case 3: bytes.insert(at, 1 + below(random, 8), static_cast<char>(random())); break;
      case 4: bytes.insert(at, bytes.substr(below(random, bytes.size()), below(random, 64))); break;
      default: bytes.resize(at + 1);
    }
  }
}

int64_t number(Random& random) {
  static const int64_t edges[] = {0, 1, 2, -1, 7, 64, 65, 127, 128, 255, 65535, 16000, 24000, 192000, INT32_MAX, INT64_MAX, INT64_MIN};
  return below(random, 3) ? edges[below(random, sizeof edges / sizeof *edges)] : static_cast<int64_t>(random());
}

std::string engine_messages(Random& random) {
  std::string out;
  for (uint64_t n = below(random, 12); n > 0; --n) {
    switch (below(random, 11)) {
      case 0: case 1: case 2: {
        Writer w(kFrameNotice, 6);
        out += w.integer(below(random, 4) ? 0 : number(random)).integer(below(random, 4) ? static_cast<int64_t>(below(random, 4)) : number(random))
                   .integer(number(random)).real(0.5).boolean(false).boolean(false).message();
        break;
      }
      case 3: case 4: {
        Writer w(kAudioNotice, 7);
        out += w.integer(0).integer(number(random)).real(1).integer(16000).integer(1 + static_cast<int64_t>(below(random, 2))).integer(0)
                   .bytes("abcdefgh", 2 * below(random, 5)).message();
        break;
      }
      case 5: { Writer w(kSegmentNotice, 4); out += w.integer(number(random)).real(1).real(1).boolean(true).message(); break; }
      case 6: { Writer w(kAudioAck, 2); out += w.integer(0).integer(number(random)).message(); break; }
      case 7: { Writer w(kErrorNotice, 2); out += w.integer(number(random)).text("a sentence").message(); break; }
      case 8: { Writer w(kQualityNotice, 3); out += w.integer(number(random)).text("fewer steps").real(1).message(); break; }
      case 9: { Writer w(kRecoveredNotice, 2); out += w.real(1).integer(number(random)).message(); break; }
      default: { Writer w(static_cast<int>(below(random, 128)), 2); out += w.integer(number(random)).text("x").message(); }
    }
  }
  return out;
}

void fuzz_client(uint64_t seed) {
  Random random(seed);
  FromEngine from;
  Writer hello(kEngineHello, 4);
  from.bytes = hello.integer(kMajor).integer(0).text("x").integer(1).message();
  if (!below(random, 4)) change(from.bytes, random);
  const bool on_gpu = !below(random, 8);  // of the fake CUDA runtime, where LD_LIBRARY_PATH has it
  Writer reply(kOpenReply, on_gpu ? 8 : 7);
  const bool sane = below(random, 3) > 0;
  const auto value = [&](int64_t usual) { return sane || below(random, 2) ? usual : number(random); };
  reply.integer(value(8)).integer(value(8)).integer(value(4)).integer(value(4096)).integer(value(16000)).integer(value(25)).integer(value(1000));
  if (on_gpu) {
    std::string handle(below(random, 8) ? 64 : below(random, 100), '\0');
    for (char& each : handle) each = static_cast<char>(random());
    reply.bytes(handle.data(), handle.size());
  }
  std::string opening = reply.message();
  if (!below(random, 6)) change(opening, random);
  std::string more = engine_messages(random);
  if (below(random, 2)) change(more, random);
  from.bytes += opening + more;
  from.sized = below(random, 8);
  from.passes = below(random, 10);
  from.ends = below(random, 2);
  from.on_gpu = on_gpu;
  feed_client(from, random);
}

void fuzz_engine(uint64_t seed) {
  Random random(seed);
  Writer hello(kClientHello, 3);
  std::string bytes = hello.text(kMagic).integer(kMajor).integer(0).message();
  const bool on_gpu = !below(random, 8);
  Writer open(kOpenRequest, on_gpu ? 11 : 10);
  open.text("i").integer(7).boolean(below(random, 2)).boolean(false).integer(24000).integer(2000).integer(static_cast<int64_t>(below(random, 5)))
               .integer(below(random, 3) ? 8 : number(random)).integer(8).text("");
  if (on_gpu) open.text("0000:04:00.0");
  bytes += open.message();
  for (uint64_t n = below(random, 12); n > 0; --n) {
    switch (below(random, 6)) {
      case 0: case 1: {
        Writer w(kAudioChunk, 5);
        const std::string audio(below(random, 3000), 'a');
        bytes += w.integer(0).integer(below(random, 4) ? 16000 : number(random)).integer(1).integer(0).bytes(audio.data(), audio.size()).message();
        break;
      }
      case 2: { Writer w(kSlotRelease, 1); bytes += w.integer(number(random)).message(); break; }
      case 3: { Writer w(kInterruptRequest, 1); bytes += w.integer(number(random)).message(); break; }
      case 4: { Writer w(kCloseRequest, 1); bytes += w.integer(number(random)).message(); break; }
      default: { Writer w(static_cast<int>(below(random, 30)), 1); bytes += w.integer(number(random)).message(); }
    }
  }
  change(bytes, random);
  feed_engine(bytes, below(random, 4) == 0);
}

// Inputs as protocol_ends.h describes them, one a file.
int replay(int count, char** paths) {
  for (int i = 0; i < count; ++i) {
    std::ifstream file(paths[i], std::ios::binary);
    const std::vector<char> data{std::istreambuf_iterator<char>(file), {}};
    if (!file || data.empty()) return std::fprintf(stderr, "%s cannot be read\n", paths[i]), 1;
    feed(reinterpret_cast<const uint8_t*>(data.data()), data.size());
  }
  std::printf("replay: %d runs\n", count);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "replay") return replay(argc - 2, argv + 2);
  const auto run = mode == "threads" ? play : mode == "client" ? fuzz_client : mode == "engine" ? fuzz_engine : nullptr;
  if (!run || argc < 4) return std::fprintf(stderr, "usage: test_client threads|client|engine SEED COUNT [SOCKET [fake-cuda]], or test_client replay FILE...\n"), 2;
  if (argc > 4) engine_socket = argv[4];
  on_gpu = argc > 5;
  const uint64_t first = std::strtoull(argv[2], nullptr, 10), count = std::strtoull(argv[3], nullptr, 10);
  for (uint64_t seed = first; seed < first + count; ++seed) run(seed);
  std::printf("%s: %llu runs\n", mode.c_str(), static_cast<unsigned long long>(count));
}
