#include "channel.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "protocol.h"

namespace everface::client {

void Channel::open(int descriptor) {
  close();
  descriptor_ = descriptor;
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
}

void Channel::close() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (passed_ >= 0) ::close(passed_);
  descriptor_ = passed_ = -1;
  out_.clear();
  in_.clear();
  sent_ = begin_ = 0;
}

bool Channel::flush() {
  while (sent_ < out_.size()) {
    const ssize_t done = ::send(descriptor_, out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
      if (sent_ > out_.size() / 2) {
        out_.erase(0, sent_);
        sent_ = 0;
      }
      return true;
    }
    sent_ += static_cast<size_t>(done);
  }
  out_.clear();
  sent_ = 0;
  return true;
}

bool Channel::fill() {
  if (in_.size() - begin_ > kMostBytes) return true;  // next() has work to do first
  if (begin_) {
    in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(begin_));
    begin_ = 0;
  }
  for (int rounds = 0; rounds < 8; ++rounds) {
    const size_t before = in_.size();
    in_.resize(before + (1 << 16));
    iovec part{in_.data() + before, in_.size() - before};
    alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(descriptor_, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    in_.resize(before + (got > 0 ? static_cast<size_t>(got) : 0));
    if (got < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
        if (passed_ >= 0) ::close(passed_);
        std::memcpy(&passed_, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      }
    }
    if (got == 0) return false;
    if (static_cast<size_t>(got) < part.iov_len) return true;
  }
  return true;
}

const uint8_t* Channel::next(size_t& size, bool& broken) {
  if (in_.size() - begin_ < 4) return nullptr;
  const uint8_t* at = in_.data() + begin_;
  size = at[0] | static_cast<size_t>(at[1]) << 8 | static_cast<size_t>(at[2]) << 16 | static_cast<size_t>(at[3]) << 24;
  if (size == 0 || size > kMostBytes) {
    broken = true;
    return nullptr;
  }
  if (in_.size() - begin_ - 4 < size) return nullptr;
  begin_ += 4 + size;
  return at + 4;
}

int Channel::take_passed() {
  const int passed = passed_;
  passed_ = -1;
  return passed;
}

bool send_descriptor(int socket, std::string message, int descriptor, int flags) {
  iovec part{message.data(), message.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr* passing = CMSG_FIRSTHDR(&header);
  passing->cmsg_level = SOL_SOCKET;
  passing->cmsg_type = SCM_RIGHTS;
  passing->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(passing), &descriptor, sizeof(int));
  return ::sendmsg(socket, &header, MSG_NOSIGNAL | flags) == static_cast<ssize_t>(message.size());
}

}  // namespace everface::client
