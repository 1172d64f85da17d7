#include "ring.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

namespace everface::ring {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr microseconds kShortNap{20};
constexpr microseconds kLongNap{500};
constexpr milliseconds kGrace{100};  // for the thread to notice that a message is late before a caller takes the thread for stuck
constexpr std::size_t kHandshake = 16;  // bytes of the first message, which makes NCCL connect the two ends
constexpr int kMaxCtas = 2;            // multiprocessors that NCCL may take from the model for a message of half a megabyte

std::string in_ms(milliseconds time) { return std::to_string(time.count()) + " ms"; }

}  // namespace

struct Ring::Core {
  struct Slot {
    void* memory;
    CudaEvent free = nullptr;  // caller's stream: filled (sender), read (receiver)
    CudaEvent done = nullptr;  // own stream: sent, received
    std::size_t bytes = 0;
  };

  Core(const Nccl& nccl, const Cuda& cuda, const NcclUniqueId& id, Side side, Options options)
      : nccl(nccl), cuda(cuda), id(id), side(side), options(std::move(options)) {
    if (this->options.slots.empty() || this->options.capacity < kHandshake)
      throw std::invalid_argument("a ring needs at least one slot of " + std::to_string(kHandshake) + " bytes");
    for (void* memory : this->options.slots) slots.push_back({memory});
  }

  // ---- callers -----------------------------------------------------------------------------------------------------------

  void create_streams() {
    try {
      const OnDevice on(cuda, options.device);
      int least = 0, greatest = 0;
      cuda.check(cuda.get_stream_priority_range(&least, &greatest), "stream priorities");
      cuda.check(cuda.stream_create(&stream, kCudaStreamNonBlocking, greatest), "a stream for the channel");
      for (Slot& slot : slots)
        for (CudaEvent* event : {&slot.free, &slot.done})
          cuda.check(cuda.event_create(event, kCudaEventDisableTiming), "an event for the channel");
    } catch (...) {
      destroy_streams();
      throw;
    }
  }

  void destroy_streams() {
    for (Slot& slot : slots)
      for (CudaEvent event : {slot.free, slot.done})
        if (event) cuda.event_destroy(event);
    if (stream) cuda.stream_destroy(stream);
  }

  Slot& slot_of(std::uint64_t ticket) { return slots[ticket % slots.size()]; }

  void check_size(std::size_t bytes) const {
    if (bytes == 0 || bytes > options.capacity)
      throw std::invalid_argument("a message of " + std::to_string(bytes) + " bytes does not fit a slot of " +
                                  std::to_string(options.capacity));
  }

  void check_side(Side wanted, const char* what) const {
    if (side != wanted) throw std::logic_error(std::string("this end of the channel cannot ") + what);
  }

  // Waits with the lock held until `ready`; throws ChannelError when that can no longer happen.
  template <class Ready>
  void await(std::unique_lock<std::mutex>& lock, Ready ready) {
    while (!ready()) {
      if (!why.empty()) throw ChannelError(why);
      changed.wait_for(lock, kGrace / 2);
      const milliseconds limit = state == State::joining ? options.join : options.timeout;
      if (!ready() && Clock::now() - beat > limit + kGrace) end("NCCL did not return from a call for " + in_ms(limit), State::broken);
    }
  }

  std::uint64_t post(std::unique_lock<std::mutex>& lock, std::size_t bytes) {
    if (!lock.owns_lock()) lock.lock();
    if (!why.empty() || closing) throw ChannelError(why.empty() ? "the channel is being closed" : why);
    slot_of(posted).bytes = bytes;
    if (posted == completed) beat = Clock::now();  // the thread was idle
    changed.notify_all();
    return posted++;
  }

  void end(const std::string& reason, State next) {  // the lock held
    if (why.empty()) {
      why = reason;
      state = next;
    }
    changed.notify_all();
  }

  // ---- the thread --------------------------------------------------------------------------------------------------------

  void run() noexcept {
    bool orderly = false;
    try {
      cuda.check(cuda.set_device(options.device), "the device of the channel");
      CudaCapture mode = kCudaCaptureRelaxed;  // calls of this thread must not break a graph capture in another
      cuda.check(cuda.exchange_capture_mode(&mode), "the capture mode");
      join();
      work();
      orderly = true;
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> lock(mutex);
      end(error.what(), State::broken);
    }
    leave(orderly);  // after callers were woken: an abort may take long
    const std::lock_guard<std::mutex> lock(mutex);
    finished = true;
    changed.notify_all();
  }

  void join() {
    progress = Clock::now();
    NcclConfig config;
    config.blocking = 0;
    config.min_ctas = 1;
    config.max_ctas = kMaxCtas;
    const milliseconds limit = options.join;
    call(nccl.comm_init_rank_config(&comm, 2, id, static_cast<int>(side), &config), "NCCL cannot join");
    settle("NCCL cannot join", limit);
    transfer(slots[0], kHandshake, "the handshake", limit);
    for (microseconds nap = kShortNap; !completes(slots[0]); pause(nap, "the handshake", limit)) poll("the handshake");
    const std::lock_guard<std::mutex> lock(mutex);
    if (why.empty()) state = State::ready;
    changed.notify_all();
  }

  void work() {
    microseconds nap = kShortNap;
    for (;;) {
      std::size_t bytes = 0;
      {
        std::unique_lock<std::mutex> lock(mutex);
        if (posted == completed) {
          changed.wait(lock, [&] { return !why.empty() || closing || posted != completed; });
          progress = beat = Clock::now();
        }
        if (!why.empty()) throw ChannelError(why);
        if (posted == completed) return;  // closing, and nothing is left to do
        if (issued < posted) bytes = slot_of(issued).bytes;
      }
      if (bytes) {
        Slot& slot = slot_of(issued);
        // A sender's slot is filled by then. A receiver's first use of each slot waits for an event that was never recorded: not at all.
        cuda.check(cuda.stream_wait_event(stream, slot.free, 0), "the channel cannot wait for the caller's stream");
        transfer(slot, bytes, "a message", options.timeout);
        ++issued;
      }
      poll("a message");
      if (reap()) nap = kShortNap;
      else if (!bytes) pause(nap, "a message", options.timeout);
    }
  }

  // Hands one send or receive to NCCL and marks its end on the stream.
  void transfer(Slot& slot, std::size_t bytes, const char* what, milliseconds limit) {
    const int peer = 1 - static_cast<int>(side);
    call(side == Side::sender ? nccl.send(slot.memory, bytes, kNcclUint8, peer, comm, stream)
                             : nccl.recv(slot.memory, bytes, kNcclUint8, peer, comm, stream),
         what);
    settle(what, limit);  // until then the work may not be on the stream, and an event would be recorded ahead of it
    cuda.check(cuda.event_record(slot.done, stream), "the channel cannot record an event");
  }

  void call(NcclResult result, const char* what) const {
    if (result != kNcclSuccess && result != kNcclInProgress) throw ChannelError(std::string(what) + ": " + nccl.describe(result));
  }

  bool poll(const char* what) const {
    NcclResult state = kNcclSuccess;
    call(nccl.comm_get_async_error(comm, &state), what);
    call(state, what);
    return state == kNcclSuccess;
  }

  void settle(const char* what, milliseconds limit) {
    for (microseconds nap = kShortNap; !poll(what); pause(nap, what, limit)) reap();
  }

  bool completes(const Slot& slot) const {
    const CudaResult result = cuda.event_query(slot.done);
    if (result == kCudaNotReady) return false;
    cuda.check(result, "the device of the channel failed");
    return true;
  }

  bool reap() {
    bool any = false;
    while (reaped < issued && completes(slot_of(reaped))) {
      any = true;
      ++reaped;
      progress = Clock::now();
      const std::lock_guard<std::mutex> lock(mutex);
      ++completed;
      changed.notify_all();
    }
    return any;
  }

  // A nap that an abort or a new message ends, longer each time; throws ChannelError when nothing moved for `limit`.
  void pause(microseconds& nap, const char* what, milliseconds limit) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait_for(lock, nap);
    nap = std::min(nap * 2, kLongNap);
    beat = Clock::now();
    if (!why.empty()) throw ChannelError(why);
    if (beat - progress > limit) throw ChannelError(std::string(what) + " did not pass for " + in_ms(limit));
  }

  // Leaves the communicator: in order if both ends finished, else by abort, the only safe way out of a hung transfer.
  void leave(bool orderly) noexcept {
    progress = Clock::now();
    if (comm && orderly) try {
        call(nccl.comm_finalize(comm), "NCCL cannot leave");
        settle("NCCL cannot leave", options.timeout);
        call(nccl.comm_destroy(comm), "NCCL cannot leave");
        comm = nullptr;
      } catch (const std::exception& error) {
        const std::lock_guard<std::mutex> lock(mutex);
        end(error.what(), State::broken);
      }
    if (comm) nccl.comm_abort(comm);
    drain();
    {
      const std::lock_guard<std::mutex> turn(callers);  // no caller is between its slot and the event of it
      destroy_streams();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    end("the channel is closed", State::closed);
  }

  // An abort asks the transfers on the device to end. Until they have, they may write to the slots.
  void drain() noexcept {
    while (cuda.stream_query(stream) == kCudaNotReady) std::this_thread::sleep_for(kLongNap);
  }

  const Nccl nccl;
  const Cuda cuda;
  const NcclUniqueId id;
  const Side side;
  const Options options;

  std::mutex callers;  // one send, recv or release at a time
  std::vector<Slot> slots;

  mutable std::mutex mutex;  // what follows
  std::condition_variable changed;
  State state = State::joining;
  std::string why;
  bool closing = false, finished = false;
  std::uint64_t posted = 0, completed = 0, released = 0;
  Clock::time_point beat = Clock::now();  // last sign of life of the thread

  NcclComm comm = nullptr;  // this and the rest: used by the thread only
  CudaStream stream = nullptr;
  std::uint64_t issued = 0, reaped = 0;
  Clock::time_point progress{};
};

Ring::Ring(const Nccl& nccl, const Cuda& cuda, const NcclUniqueId& id, Side side, Options options)
    : core_(std::make_shared<Core>(nccl, cuda, id, side, std::move(options))) {
  core_->create_streams();
  thread_ = std::thread([core = core_] { core->run(); });
}

Ring::~Ring() {
  abort("the channel was dropped");
  close();
  std::unique_lock<std::mutex> lock(core_->mutex);
  const bool finished = core_->finished;
  lock.unlock();
  if (finished) thread_.join();
  else thread_.detach();  // NCCL or the device holds it; core_ lives as long as the thread
}

std::uint64_t Ring::send(const std::vector<Part>& parts, std::size_t bytes, CudaStream after) {
  Core& core = *core_;
  core.check_side(Side::sender, "send");
  core.check_size(bytes);
  for (const Part& part : parts)
    if (part.offset > bytes || part.bytes > bytes - part.offset) throw std::invalid_argument("a part goes beyond its message");
  const std::lock_guard<std::mutex> turn(core.callers);
  std::unique_lock<std::mutex> lock(core.mutex);
  core.await(lock, [&] { return core.state == State::ready && core.posted - core.completed < core.slots.size(); });
  Core::Slot& slot = core.slot_of(core.posted);
  lock.unlock();
  {
    const OnDevice on(core.cuda, core.options.device);
    for (const Part& part : parts)
      core.cuda.check(core.cuda.memcpy_async(static_cast<char*>(slot.memory) + part.offset, part.data, part.bytes,
                                             kCudaCopyDefault, after),
                      "a message cannot be copied");
    core.cuda.check(core.cuda.event_record(slot.free, after), "a message cannot be marked");
  }
  return core.post(lock, bytes);
}

std::uint64_t Ring::recv(std::size_t bytes) {
  Core& core = *core_;
  core.check_side(Side::receiver, "receive");
  core.check_size(bytes);
  const std::lock_guard<std::mutex> turn(core.callers);
  std::unique_lock<std::mutex> lock(core.mutex);
  core.await(lock, [&] { return core.state == State::ready; });
  if (core.posted - core.released == core.slots.size()) throw std::logic_error("no slot is free: release one first");
  return core.post(lock, bytes);
}

void* Ring::wait(std::uint64_t ticket) {
  std::unique_lock<std::mutex> lock(core_->mutex);
  if (ticket >= core_->posted) throw std::logic_error("this message was never posted");
  core_->await(lock, [&] { return ticket < core_->completed; });
  return core_->slot_of(ticket).memory;
}

bool Ring::done(std::uint64_t ticket) const {
  const std::lock_guard<std::mutex> lock(core_->mutex);
  return ticket < core_->completed;
}

void Ring::release(std::uint64_t ticket, CudaStream after) {
  Core& core = *core_;
  core.check_side(Side::receiver, "release");
  const std::lock_guard<std::mutex> turn(core.callers);
  std::unique_lock<std::mutex> lock(core.mutex);
  if (ticket != core.released || ticket >= core.completed) throw std::logic_error("slots are released in order, once they are done");
  if (!core.why.empty()) throw ChannelError(core.why);
  lock.unlock();
  {
    const OnDevice on(core.cuda, core.options.device);
    core.cuda.check(core.cuda.event_record(core.slot_of(ticket).free, after), "a slot cannot be marked");
  }
  lock.lock();
  ++core.released;
}

void Ring::abort(const std::string& reason) {
  const std::lock_guard<std::mutex> lock(core_->mutex);
  core_->end(reason, State::broken);
}

bool Ring::close() {
  Core& core = *core_;
  std::unique_lock<std::mutex> lock(core.mutex);
  core.closing = true;
  core.beat = Clock::now();
  core.changed.notify_all();
  const auto ended = [&] { return core.finished; };
  try {
    core.await(lock, ended);
  } catch (const ChannelError&) {  // the thread is ending
    core.changed.wait_for(lock, core.options.timeout + 2 * kGrace, ended);
  }
  return core.finished;
}

State Ring::state() const {
  const std::lock_guard<std::mutex> lock(core_->mutex);
  return core_->state;
}

std::string Ring::reason() const {
  const std::lock_guard<std::mutex> lock(core_->mutex);
  return core_->why;
}

}  // namespace everface::ring
