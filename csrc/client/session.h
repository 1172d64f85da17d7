// A session at the client's end. No thread of its own: whoever calls does the reading and writing, and one of those who wait, the leader,
// sleeps on the socket for all.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unistd.h>
#include <vector>

#include "channel.h"
#include "cuda.h"
#include "engine.h"
#include "error.h"
#include "msgpack.h"

namespace everface::client {

constexpr uint32_t kMostSlots = 64;

// The frames' memory, mapped for reading. It stays while a frame of it is borrowed.
struct Frames {
  const uint8_t* base = nullptr;
  std::unique_ptr<CudaMemory> cuda;  // of frames on a GPU, in the place of `base`
  size_t size = 0;
  uint32_t slots = 0, width = 0, height = 0;
  size_t slot_bytes = 0;
  Frames() = default;
  ~Frames();
  Frames(const Frames&) = delete;
  Frames& operator=(const Frames&) = delete;
};

// What an ef_event points to.
struct Event : ef_event {
  explicit Event(ef_event_type kind);
  std::shared_ptr<Session> session;  // set for a frame that was polled: it is given back there
  std::shared_ptr<Frames> memory;
  uint32_t slot = 0;
  std::string data;             // samples, or a text
  std::vector<uint8_t> pixels;  // a converted frame
  const uint8_t* rgb = nullptr;  // null on a GPU
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<Engine> engine, const ef_session_config& config);
  ~Session();

  Error open();
  void cancel_open();
  Error push(const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels, uint32_t timeout_ms, size_t& accepted);
  Error push_user_audio(const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels);
  Error change(const ef_change& change, uint32_t timeout_ms);
  size_t remark(char* text, size_t size);
  Error end_segment();
  Error interrupt(uint64_t& turn);
  Error poll(uint32_t timeout_ms, const ef_event*& event);
  Error stats(uint32_t timeout_ms, ef_stats& stats);
  void cancel();
  Error close(uint32_t drain_ms);
  void free_descriptors();
  int descriptor() const { return pollable_; }
  void give_back(const Event& event);

 private:
  enum class State { closed, greeting, opening, open, lost };
  using Lock = std::unique_lock<std::mutex>;
  using Time = Clock::time_point;

  Error connect();
  void io();
  void read_messages();
  void handle(const uint8_t* data, size_t size);
  void handle_hello(Reader& r);
  void handle_open(Reader& r);
  void handle_frame(Reader& r);
  void handle_audio(Reader& r);
  void handle_segment(Reader& r);
  void handle_ack(Reader& r);
  void handle_stats(Reader& r);
  void handle_change(Reader& r);
  void fail(Error error);
  void lose(const std::string& why);
  void abandon_changes(const Error& why);
  void try_again();
  void give_up();
  void arm(Time when);
  void disarm();
  void finish();
  void queue(std::unique_ptr<Event> event);
  void drop_media();
  Error send(Writer& writer);
  Error check_open() const;
  Error check_backlog() const;
  void release_slot(uint32_t slot, const Frames* of);
  void watch();
  void nudge();
  Error wait(Lock& lock, Time end, const std::function<bool()>& done);

  bool forked() const { return ::getpid() != process_; }

  std::shared_ptr<Engine> engine_;  // until the descriptors are freed
  const pid_t process_ = ::getpid();
  std::string image_, prompt_;  // what an engine that comes back is to show
  std::string gpu_;  // that holds the frames: its PCI bus id
  const ef_session_config config_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Channel channel_;
  State state_ = State::closed;
  bool opened_ = false, ended_ = false, closed_delivered_ = false, draining_ = false;
  Error error_;
  std::shared_ptr<Frames> frames_;
  std::vector<bool> borrowed_;
  uint32_t unsent_releases_ = 0;
  std::deque<std::unique_ptr<Event>> events_;
  std::vector<std::vector<uint8_t>> spare_pixels_;
  // audio
  struct Chunk {
    size_t samples;
    uint32_t rate_hz;
  };
  struct Segment {
    uint64_t number;
    uint32_t rate_hz;
    double pushed_s, shown_s;
  };
  std::deque<Chunk> unacknowledged_;
  std::deque<Segment> segments_;
  uint64_t segment_count_ = 0, segment_base_ = 0;
  uint64_t turn_ = 0, turn_base_ = 0;
  uint32_t rate_hz_ = 0, channels_ = 0;  // of the present segment; rate 0: none
  int format_ = 0;
  double window_s_ = 0;
  int64_t pts_base_ = 0, next_pts_ = 0;
  uint32_t sample_rate_ = 16000, samples_per_frame_ = 640;
  bool last_idle_ = true;
  // changes
  struct Change {
    std::string image, prompt;
    bool has_prompt = false, answered = false, abandoned = false;
    Error error;
  };
  std::map<int64_t, Change> changes_;  // that the engine has not answered, or whose callers have not seen it
  int64_t change_count_ = 0, engine_minor_ = 0;
  bool listens_ = false;
  std::string remark_;
  // stats
  int64_t asked_ = 0, answered_ = 0;
  ef_stats stats_{};
  // waiting
  int pollable_ = -1, ready_ = -1, nudge_ = -1, timer_ = -1;
  bool ready_set_ = false, watching_writes_ = false, leader_ = false;
  int waiters_ = 0;
  uint64_t cancels_ = 0, messages_read_ = 0;
  bool cancel_next_ = false;
  Time drain_end_{}, next_try_{}, lost_end_{}, lost_at_{};
};

}  // namespace everface::client
