// Faces for many clients, on one thread: epoll_server IMAGE PATH [SOCKET]. A client of the Unix socket at PATH sends mono audio, int16 at 16 kHz,
// and shuts down its sending; it gets RGB24 frames as they are made. Without SOCKET it starts an engine. Opening a session waits for the engine.
#include <cerrno>
#include <everface.hpp>
#include <iostream>
#include <map>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <vector>
struct Client {
  everface::Session session;
  int socket;
  std::vector<char> audio{};  // that the engine had no room for yet
  everface::Event frame{};    // that is being sent,
  size_t sent = 0;            // so far
  ~Client() { close(socket); }

  bool serve() {  // all that needs no waiting; false when it is over
    char part[8192];
    for (ssize_t got = 1; got > 0;) {
      if ((got = audio.size() < 65536 ? read(socket, part, sizeof part) : -1) > 0) audio.insert(audio.end(), part, part + got);
      const size_t taken = audio.size() < 2 ? 0 : session.push_audio(reinterpret_cast<int16_t*>(audio.data()), audio.size() / 2, 16000);
      audio.erase(audio.begin(), audio.begin() + static_cast<long>(2 * taken));
      if (got == 0 && audio.size() < 2) session.close(std::chrono::minutes(1));  // what was pushed is shown, then EF_EVENT_CLOSED comes
    }
    for (;; frame.reset(), sent = 0) {
      if (!frame && !(frame = session.poll())) return true;
      if (frame->type == EF_EVENT_CLOSED) return false;
      const size_t size = frame->type == EF_EVENT_VIDEO ? frame->stride[0] * frame->height : 0;
      for (ssize_t done; sent < size; sent += static_cast<size_t>(done))  // the engine waits for a client that reads slowly
        if ((done = send(socket, frame->plane[0] + sent, size - sent, MSG_NOSIGNAL)) < 0) return errno == EAGAIN;
    }
  }
};
int main(int argc, char** argv) try {
  if (argc < 3) return std::cerr << "usage: epoll_server IMAGE PATH [SOCKET]\n", 2;
  everface::EngineConfig engine_config;
  if (argc > 3) engine_config.socket_path = argv[3];
  everface::Engine engine(engine_config);
  const everface::SessionConfig config(argv[1]);
  sockaddr_un address{AF_UNIX, {}};
  std::string(argv[2]).copy(address.sun_path, sizeof address.sun_path - 1);
  const int listener = socket(AF_UNIX, SOCK_STREAM, 0), loop = epoll_create1(0);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) || listen(listener, 64)) return std::perror(argv[2]), 1;
  std::map<void*, std::unique_ptr<Client>> clients;
  const auto watch = [loop](int fd, uint32_t what, void* client) { epoll_event e{what, {client}}; epoll_ctl(loop, EPOLL_CTL_ADD, fd, &e); };
  watch(listener, EPOLLIN, nullptr);
  for (epoll_event e; epoll_wait(loop, &e, 1, -1) == 1;) try {
    if (e.data.ptr && (clients.at(e.data.ptr)->serve() || clients.erase(e.data.ptr))) continue;
    std::unique_ptr<Client> client(new Client{engine.open(config), accept4(listener, nullptr, nullptr, SOCK_NONBLOCK)});
    watch(client->socket, EPOLLIN | EPOLLOUT | EPOLLET, client.get()), watch(client->session.fd(), EPOLLIN | EPOLLET, client.get());
    clients.emplace(client.get(), std::move(client));
  } catch (const everface::Error& error) {
    std::cerr << error.what() << '\n';
    if (!clients.erase(e.data.ptr)) close(accept(listener, nullptr, nullptr));
  }
} catch (const std::exception& error) { return std::cerr << "epoll_server: " << error.what() << '\n', 1; }
