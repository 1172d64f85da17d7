#include "engine.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "channel.h"
#include "fake_engine.h"
#include "session.h"

extern char** environ;

namespace everface::client {
namespace {

constexpr int kOwnerDescriptor = 3;  // of our socket, in an engine of our own
constexpr auto kEndTime = std::chrono::seconds(3);
constexpr auto kBetweenStarts = std::chrono::seconds(1);
constexpr char kEndedAtStart[] = "the engine ended while it started: what it printed says why";

std::string reason() { return std::strerror(errno); }

bool socket_pair(int (&ends)[2]) { return ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0; }

std::vector<std::string> words(const std::string& line) {
  std::vector<std::string> out;
  size_t at = 0;
  while ((at = line.find_first_not_of(' ', at)) != std::string::npos) {
    const size_t end = std::min(line.find(' ', at), line.size());
    out.push_back(line.substr(at, end - at));
    at = end;
  }
  return out;
}

// So that it can be reached from another folder too, if the longer name is not too long for a socket.
std::string socket_path(const char* given) {
  if (!given || !*given) return "";
  const std::string whole = absolute(given);
  return whole.size() < sizeof(sockaddr_un::sun_path) ? whole : given;
}

}  // namespace

void close_descriptor(int descriptor) { ::close(descriptor); }

std::string absolute(const char* path) {
  if (*path == '/') return path;
  std::string folder(4096, '\0');
  if (!::getcwd(folder.data(), folder.size())) return path;
  folder.resize(std::strlen(folder.c_str()));
  return folder + "/" + path;
}

Engine::Engine(const ef_engine_config& config)
    : path_(socket_path(config.socket_path)),
      command_(config.command ? config.command : "everface engine"),
      fake_(config.fake != 0),
      timeout_ms_(config.timeout_ms) {}

Engine::~Engine() {
  if (::getpid() != process_) {  // a child after fork(): the engine is the parent's
    fake_engine_.release();
    if (owner_ >= 0) ::close(owner_);
    return;
  }
  fake_engine_.reset();
  end_process();
}

Error Engine::start() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (fake_) {
    fake_engine_ = std::make_unique<FakeEngine>();
    return {};
  }
  if (!path_.empty() && path_.size() >= sizeof(sockaddr_un::sun_path))
    return {EF_BAD_INPUT, "the socket's path " + path_ + " is too long: name one of at most 107 characters"};
  return path_.empty() ? spawn() : Error{};
}

int Engine::connect(Error& error) {
  if (::getpid() != process_) {
    error = {EF_UNAVAILABLE, "this engine was opened before fork(), in the parent: open another one here"};
    return -1;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!path_.empty() && !fake_) {
    const int descriptor = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.c_str(), path_.size());
    if (descriptor < 0 || ::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      if (errno == EAGAIN) error = {EF_TIMEOUT, "the engine at " + path_ + " has not taken the clients before this one yet: open again later"};
      else error = {EF_LOST, "no engine can be reached at " + path_ + " (" + reason() + "): start one with 'everface engine --socket " + path_ + "'"};
      if (descriptor >= 0) ::close(descriptor);
      return -1;
    }
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || (peer.uid != ::geteuid() && peer.uid != 0)) {
      error = {EF_UNAVAILABLE, "the engine at " + path_ + " runs as another user: start one of your own"};
      ::close(descriptor);
      return -1;
    }
    return descriptor;
  }
  if (!fake_ && ended()) {
    if (Clock::now() - started_ < kBetweenStarts) {
      error = {EF_LOST, kEndedAtStart};
      return -1;
    }
    if ((error = spawn())) return -1;
  }
  int ends[2];
  if (!socket_pair(ends)) {
    error = {EF_UNAVAILABLE, "no socket can be made (" + reason() + "): close other files"};
    return -1;
  }
  if (fake_) {
    fake_engine_->serve(ends[1]);
    return ends[0];
  }
  const bool sent = send_descriptor(owner_, "c", ends[1], MSG_DONTWAIT);
  const bool ending = !sent && errno == EPIPE;  // its socket is closed, and the process cannot be waited for yet
  const std::string why = reason();
  ::close(ends[1]);
  if (sent) return ends[0];
  ::close(ends[0]);
  if (ending && Clock::now() - started_ < kBetweenStarts) error = {EF_LOST, kEndedAtStart};
  else error = {EF_LOST, "the engine cannot be reached (" + why + "): what it printed says why"};
  return -1;
}

Error Engine::spawn() {
  end_process();
  started_ = Clock::now();
  int ends[2];
  if (!socket_pair(ends)) return {EF_UNAVAILABLE, "no socket can be made (" + reason() + "): close other files"};
  std::vector<std::string> line = words(command_);
  line.insert(line.end(), {"--fd", std::to_string(kOwnerDescriptor)});
  std::vector<char*> argv;
  for (std::string& word : line) argv.push_back(word.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&files);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_adddup2(&files, ends[1], kOwnerDescriptor);  // which clears close-on-exec, even of the same number
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
  posix_spawn_file_actions_addclosefrom_np(&files, kOwnerDescriptor + 1);
#endif
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setpgroup(&attributes, 0);  // Ctrl-C at the terminal is for the host, which decides
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  const int failed = ::posix_spawnp(&pid_, argv[0], &files, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  ::close(ends[1]);
  if (failed) {
    ::close(ends[0]);
    pid_ = -1;
    return {EF_UNAVAILABLE, "the engine '" + command_ + "' cannot be started (" + std::strerror(failed) + "): install everface, or name its command"};
  }
  owner_ = ends[0];
  return {};
}

bool Engine::ended() {
  if (pid_ <= 0) return true;
  const pid_t done = ::waitpid(pid_, nullptr, WNOHANG);
  if (done == 0) return false;
  pid_ = -1;
  return true;
}

// An engine ends by itself when our socket is closed.
void Engine::end_process() {
  if (owner_ >= 0) ::close(owner_);
  owner_ = -1;
  const auto end = Clock::now() + kEndTime;
  while (!ended()) {
    if (Clock::now() > end) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
      return;
    }
    ::usleep(5000);
  }
}

void Engine::add_waiting(const std::shared_ptr<Session>& session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t kept = 0;
  for (auto& each : waiting_)
    if (!each.expired()) waiting_[kept++] = each;
  waiting_.resize(kept);
  waiting_.push_back(session);
}

void Engine::cancel() {
  std::vector<std::weak_ptr<Session>> waiting;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting = waiting_;
  }
  for (const auto& each : waiting)
    if (const auto session = each.lock()) session->cancel_open();
}

}  // namespace everface::client
