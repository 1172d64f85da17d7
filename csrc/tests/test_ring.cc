// Drives pairs of rings over the fake NCCL.   test_ring NCCL CUDART stress FIRST COUNT | faults FIRST COUNT | processes COUNT
#include <dirent.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "../ring/ring.h"
#include "fakes.h"

extern char** environ;

namespace {

using namespace everface::ring;
using Bytes = std::vector<unsigned char>;
using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr std::size_t kCapacity = 4096;
constexpr FakeFaults kNone{0, 0, 0, -1, -1, -1, -1, -1, 0, 0};
constexpr milliseconds kSlack{10'000};  // for a busy machine

#define CHECK(condition, ...)                                       \
  do {                                                              \
    if (!(condition)) {                                             \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                            \
      std::fputc('\n', stderr);                                     \
      std::_Exit(1);                                                \
    }                                                               \
  } while (false)

struct Libraries {
  Nccl nccl;
  Cuda cuda;
  const char *program, *nccl_path, *cuda_path;
};

struct Memory {
  explicit Memory(int count) : slots(static_cast<std::size_t>(count), Bytes(kCapacity)) {}
  Options options(milliseconds timeout, milliseconds join = milliseconds(60'000)) {
    Options options{0, {}, kCapacity, join, timeout};
    for (Bytes& slot : slots) options.slots.push_back(slot.data());
    return options;
  }
  std::vector<Bytes> slots;
};

struct Stream {
  explicit Stream(const Cuda& cuda) : cuda(cuda) { cuda.check(cuda.stream_create(&stream, 0, 0), "stream"); }
  ~Stream() { cuda.stream_destroy(stream); }
  void drain() const {
    while (cuda.stream_query(stream) == kCudaNotReady) std::this_thread::sleep_for(microseconds(20));
  }
  const Cuda& cuda;
  CudaStream stream = nullptr;
};

// What both ends of a timeline derive from the seed.
struct Plan {
  explicit Plan(std::uint64_t seed, int least = 1) {
    std::mt19937_64 random(seed);
    slots = 1 + static_cast<int>(random() % 3);
    messages.resize(static_cast<std::size_t>(least) + random() % 12);
    for (Bytes& message : messages) {
      message.resize(1 + (random() % 3 ? random() % 64 : random() % kCapacity));
      for (unsigned char& byte : message) byte = static_cast<unsigned char>(random());
    }
    for (FakeFaults& faults : ranks) {
      faults.seed = random();
      faults.delay_us = random() % 3 ? static_cast<std::uint32_t>(random() % 200) : 0;
      faults.eager = static_cast<std::int32_t>(random() % 2);
    }
    pause_us = random() % 4 ? 0 : 1 + random() % 300;
  }
  int slots;
  std::vector<Bytes> messages;
  FakeFaults ranks[2] = {kNone, kNone};
  std::uint64_t pause_us;  // longest, between two messages
};

void pause_up_to(std::mt19937_64& random, std::uint64_t longest_us) {
  if (longest_us) std::this_thread::sleep_for(microseconds(random() % longest_us));
}

// Sends all messages from one buffer that is overwritten at once, as a captured graph overwrites its output.
void send_all(Ring& ring, const Plan& plan, const Cuda& cuda, std::uint64_t seed) {
  std::mt19937_64 random(seed ^ 1);
  Stream compute(cuda);
  Bytes output(kCapacity);
  try {
    for (const Bytes& message : plan.messages) {
      cuda.memcpy_async(output.data(), message.data(), message.size(), kCudaCopyDefault, compute.stream);
      const std::size_t cut = random() % (message.size() + 1);
      ring.send({{output.data() + cut, cut, message.size() - cut}, {output.data(), 0, cut}}, message.size(), compute.stream);
      pause_up_to(random, plan.pause_us);
    }
  } catch (...) {
    compute.drain();
    throw;
  }
  compute.drain();
}

// Receives all messages, one or more ahead. Reads each slot on a stream and releases it before the read has happened.
std::size_t receive_all(Ring& ring, const Plan& plan, const Cuda& cuda, std::uint64_t seed, std::vector<Bytes>& received) {
  std::mt19937_64 random(seed ^ 2);
  Stream compute(cuda);
  received.assign(plan.messages.size(), Bytes(kCapacity));
  std::size_t posted = 0, read = 0;
  const std::size_t ahead = 1 + random() % static_cast<std::size_t>(plan.slots);
  try {
    while (read < plan.messages.size()) {
      while (posted < plan.messages.size() && posted - read < ahead) ring.recv(plan.messages[posted++].size());
      const void* slot = ring.wait(read);
      CHECK(ring.done(read), "message %zu", read);
      cuda.memcpy_async(received[read].data(), slot, plan.messages[read].size(), kCudaCopyDefault, compute.stream);
      ring.release(read, compute.stream);
      ++read;
      pause_up_to(random, plan.pause_us);
    }
  } catch (...) {
    compute.drain();
    throw;
  }
  compute.drain();
  return read;
}

void check_equal(const Plan& plan, std::vector<Bytes>& received, std::size_t count, std::uint64_t seed) {
  for (std::size_t i = 0; i < count; ++i) {
    received[i].resize(plan.messages[i].size());
    CHECK(received[i] == plan.messages[i], "seed %llu, message %zu differs", static_cast<unsigned long long>(seed), i);
  }
}

int count_threads() {
  int count = 0;
  DIR* tasks = opendir("/proc/self/task");
  while (readdir(tasks)) ++count;
  closedir(tasks);
  return count;
}

// Streams and threads end a moment after they were asked to.
void check_baseline(int threads, std::uint64_t seed) {
  const auto quiet = [threads] { return fakeNcclLive() == 0 && fakeCudaLive() == 0 && count_threads() <= threads; };
  const auto until = Clock::now() + kSlack;
  bool ended = quiet();  // once is enough: a listing of threads that come and go may count one too many
  while (!ended && Clock::now() < until) {
    std::this_thread::sleep_for(microseconds(100));
    ended = quiet();
  }
  CHECK(ended,
        "seed %llu leaves %d communicators, %d streams and events, %d threads where there were %d",
        static_cast<unsigned long long>(seed), fakeNcclLive(), fakeCudaLive(), count_threads(), threads);
}

NcclUniqueId new_id(const Libraries& at) {
  NcclUniqueId id;
  CHECK(at.nccl.get_unique_id(&id) == kNcclSuccess, "no unique id");
  return id;
}

void stress(const Libraries& at, std::uint64_t seed, int threads) {
  const Plan plan(seed);
  std::vector<Bytes> received;
  std::size_t count = 0;
  {
    Memory from(plan.slots), to(plan.slots);
    for (int rank : {0, 1}) fakeNcclFaults(rank, &plan.ranks[rank]);
    const NcclUniqueId id = new_id(at);
    Ring sender(at.nccl, at.cuda, id, Side::sender, from.options(milliseconds(60'000)));
    Ring receiver(at.nccl, at.cuda, id, Side::receiver, to.options(milliseconds(60'000)));
    std::thread sending([&] {
      send_all(sender, plan, at.cuda, seed);
      CHECK(sender.close(), "seed %llu: the sender does not close", static_cast<unsigned long long>(seed));
    });
    count = receive_all(receiver, plan, at.cuda, seed, received);
    CHECK(receiver.close(), "seed %llu: the receiver does not close", static_cast<unsigned long long>(seed));
    sending.join();
    for (const Ring* ring : {&sender, &receiver})
      CHECK(ring->state() == State::closed, "seed %llu: %s", static_cast<unsigned long long>(seed), ring->reason().c_str());
  }
  check_equal(plan, received, count, seed);
  check_baseline(threads, seed);
}

// One end misbehaves at a random message. Both ends must notice in time, and what was received before must be right.
void fault(const Libraries& at, std::uint64_t seed, int threads) {
  std::mt19937_64 random(seed ^ 3);
  Plan plan(seed, 3);
  const milliseconds timeout{static_cast<int>(20 + random() % 30)};
  const int rank = static_cast<int>(random() % 2), at_call = static_cast<int>(random() % (plan.messages.size() + 1));
  FakeFaults& faults = plan.ranks[rank];
  faults.code = 6;
  faults.stall_ms = static_cast<std::uint32_t>(timeout.count()) + 400;
  const int kind = static_cast<int>(random() % 7);
  std::int32_t* const kinds[] = {&faults.fail_call, &faults.fail_async, &faults.hang_issue, &faults.hang_run, &faults.stall_call};
  if (kind < 5) *kinds[kind] = at_call;
  const bool joining = at_call == 0;
  const milliseconds join = joining || kind >= 5 ? timeout : milliseconds(60'000);

  std::string reasons[2];
  std::vector<Bytes> received;
  std::size_t count = 0;
  const auto began = Clock::now();
  {
    Memory from(plan.slots), to(plan.slots);
    for (int r : {0, 1}) fakeNcclFaults(r, &plan.ranks[r]);
    const NcclUniqueId id = new_id(at);
    Ring sender(at.nccl, at.cuda, id, Side::sender, from.options(timeout, join));
    Ring receiver(at.nccl, at.cuda, id, Side::receiver, to.options(timeout, join));
    if (kind == 5) (rank ? receiver : sender).abort("pulled");
    if (kind == 6) fakeCudaFail(700);
    std::thread sending([&] {
      try {
        send_all(sender, plan, at.cuda, seed);
      } catch (const ChannelError& broken) {
        reasons[0] = broken.what();
      }
    });
    try {
      receive_all(receiver, plan, at.cuda, seed, received);
      count = plan.messages.size();
    } catch (const ChannelError& broken) {
      reasons[1] = broken.what();
    }
    sending.join();
    CHECK(count < plan.messages.size() || kind == 4 || rank == 0,
          "seed %llu: no end noticed fault %d", static_cast<unsigned long long>(seed), kind);
    fakeCudaFail(0);
    const auto elapsed = std::chrono::duration_cast<milliseconds>(Clock::now() - began);
    CHECK(elapsed < 20 * timeout + kSlack, "seed %llu: fault %d took %lld ms", static_cast<unsigned long long>(seed), kind,
          static_cast<long long>(elapsed.count()));
    for (Ring* ring : {&sender, &receiver}) {  // the slots must outlive the transfers of NCCL
      ring->abort("over");
      while (!ring->close()) std::this_thread::sleep_for(milliseconds(5));
    }
  }
  const std::string& reason = reasons[rank];
  if (!reason.empty()) {
    const char* const words[] = {"remote process", "remote process", "did not pass", "did not pass", "did not return", "pulled", "illegal"};
    const bool named = reason.find(words[kind]) != std::string::npos || reason.find("did not") != std::string::npos;
    CHECK(named, "seed %llu: fault %d is reported as: %s", static_cast<unsigned long long>(seed), kind, reason.c_str());
  }
  check_baseline(threads, seed);
}

std::string to_hex(const NcclUniqueId& id) {
  std::string hex;
  char two[3];
  for (const char byte : id.bytes) {
    std::snprintf(two, sizeof two, "%02x", static_cast<unsigned char>(byte));
    hex += two;
  }
  return hex;
}

NcclUniqueId from_hex(const std::string& hex) {
  NcclUniqueId id;
  for (std::size_t i = 0; i < sizeof id.bytes; ++i) id.bytes[i] = static_cast<char>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  return id;
}

// The other process of a channel: receives everything, or kills itself half-way.
int receive_elsewhere(const Libraries& at, const std::string& id, std::uint64_t seed, bool die) {
  const Plan plan(seed, 4);
  Memory to(plan.slots);
  fakeNcclFaults(1, &plan.ranks[1]);
  Ring receiver(at.nccl, at.cuda, from_hex(id), Side::receiver, to.options(milliseconds(60'000)));
  if (die) {
    receiver.recv(plan.messages[0].size());
    receiver.wait(0);
    std::raise(SIGKILL);
  }
  std::vector<Bytes> received;
  const std::size_t count = receive_all(receiver, plan, at.cuda, seed, received);
  check_equal(plan, received, count, seed);
  CHECK(receiver.close(), "the receiver does not close");
  return 0;
}

void processes(const Libraries& at, std::uint64_t seed, int threads) {
  const bool die = seed % 2;
  Plan plan(seed, 4);
  plan.ranks[0].eager = 0;
  const milliseconds timeout{die ? 200 : 60'000};
  const NcclUniqueId id = new_id(at);
  const std::string hex = to_hex(id), number = std::to_string(seed), death = die ? "1" : "0";
  const char* arguments[] = {at.program, at.nccl_path, at.cuda_path, "receive", hex.c_str(), number.c_str(), death.c_str(), nullptr};
  pid_t child = 0;
  CHECK(posix_spawn(&child, at.program, nullptr, nullptr, const_cast<char**>(arguments), environ) == 0, "no child process");
  {
    Memory from(plan.slots);
    fakeNcclFaults(0, &plan.ranks[0]);
    Ring sender(at.nccl, at.cuda, id, Side::sender, from.options(timeout));
    int status = 0;
    std::string reason;
    try {
      send_all(sender, plan, at.cuda, seed);
      sender.close();
      if (sender.state() == State::broken) reason = sender.reason();
    } catch (const ChannelError& broken) {
      reason = broken.what();
    }
    CHECK(waitpid(child, &status, 0) == child, "no child process");
    if (die) CHECK(reason == "a message did not pass for 200 ms", "seed %llu: %s", static_cast<unsigned long long>(seed), reason.c_str());
    else CHECK(reason.empty() && WIFEXITED(status) && WEXITSTATUS(status) == 0, "seed %llu: %s, child %d",
               static_cast<unsigned long long>(seed), reason.c_str(), status);
  }
  check_baseline(threads, seed);
}

}  // namespace

int main(int count, char** words) {
  CHECK(count > 4, "too few arguments");
  const Libraries at{Nccl::load(words[1]), Cuda::load(words[2]), words[0], words[1], words[2]};
  const std::string mode = words[3];
  if (mode == "receive") return receive_elsewhere(at, words[4], std::strtoull(words[5], nullptr, 10), words[6][0] == '1');
  const std::uint64_t first = std::strtoull(words[4], nullptr, 10), seeds = std::strtoull(words[5], nullptr, 10);
  const auto timeline = mode == "stress" ? stress : mode == "faults" ? fault : processes;
  std::thread([] {}).join();  // the threads of a sanitizer start with the first
  const int threads = count_threads();
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) timeline(at, seed, threads);
  std::printf("%s: %llu timelines\n", mode.c_str(), static_cast<unsigned long long>(seeds));
}
