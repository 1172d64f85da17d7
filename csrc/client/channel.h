// One end of a connection: whole messages in and out, never waiting.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace everface::client {

class Channel {
 public:
  Channel() = default;
  ~Channel() { close(); }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void open(int descriptor);  // takes it over
  void close();
  int descriptor() const { return descriptor_; }

  void queue(const std::string& message) { out_ += message; }
  size_t waiting() const { return out_.size() - sent_; }  // bytes that were not sent yet
  bool flush();  // sends what it can; false when the other end is gone
  bool fill();   // receives what is there, some of it; false when the other end is gone
  // The next whole message, valid until the next call; null when there is none. Sets `broken` for one that breaks a bound.
  const uint8_t* next(size_t& size, bool& broken);
  int take_passed();  // the descriptor that came last, or -1

 private:
  int descriptor_ = -1, passed_ = -1;
  std::string out_;
  size_t sent_ = 0, begin_ = 0;
  std::vector<uint8_t> in_;
};

// Sends a message and, beside it, a descriptor, at once or not at all. The descriptor stays open here.
bool send_descriptor(int socket, std::string message, int descriptor, int flags = 0);

}  // namespace everface::client
