// The C functions: checks of arguments, structs of other versions, and no exception beyond here.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "color.h"
#include "engine.h"
#include "everface.h"
#include "session.h"

using everface::client::Engine;
using everface::client::Error;
using everface::client::Event;
using everface::client::Session;

struct ef_engine {
  std::shared_ptr<Engine> engine;
};

struct ef_session {
  std::shared_ptr<Session> session;
};

namespace {

thread_local std::string last_error;

ef_status report(const Error& error) {
  if (error) last_error = error.text;
  return error.status;
}

// Runs `call`, which returns an Error.
template <class Call>
ef_status guarded(Call call) noexcept {
  try {
    return report(call());
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";  // so short that it needs none
    return EF_NO_MEMORY;
  } catch (const std::exception& error) {
    try {
      return report({EF_UNAVAILABLE, std::string("the library failed: ") + error.what()});
    } catch (...) {
      last_error = "out of memory";
      return EF_NO_MEMORY;
    }
  } catch (...) {
    last_error = "unknown failure";
    return EF_UNAVAILABLE;
  }
}

// A caller's struct over the defaults, whatever version it was compiled with.
template <class Struct>
Error take(const Struct* given, Struct& out, void (*defaults)(Struct*)) {
  defaults(&out);
  if (!given) return {};
  if (given->struct_size < sizeof(size_t) || given->struct_size > 4096)
    return {EF_BAD_INPUT, "struct_size is not set: call the function of the struct's defaults first"};
  std::memcpy(&out, given, std::min(given->struct_size, sizeof out));
  out.struct_size = sizeof out;
  return {};
}

// Of a path or a prompt, which may be NULL: the engine reads UTF-8.
bool is_utf8(const char* text) {
  for (const auto* at = reinterpret_cast<const unsigned char*>(text); *at;) {
    const int more = *at < 0x80 ? 0 : *at >= 0xC2 && *at < 0xE0 ? 1 : *at >= 0xE0 && *at < 0xF0 ? 2 : *at >= 0xF0 && *at < 0xF5 ? 3 : -1;
    if (more < 0) return false;
    const unsigned first = *at++;
    for (int i = 0; i < more; ++i, ++at) {
      const unsigned least = i ? 0x80u : first == 0xE0 ? 0xA0u : first == 0xF0 ? 0x90u : 0x80u;  // no longer form than needed
      const unsigned most = i ? 0xBFu : first == 0xED ? 0x9Fu : first == 0xF4 ? 0x8Fu : 0xBFu;   // no surrogate, nothing past U+10FFFF
      if (*at < least || *at > most) return false;
    }
  }
  return true;
}

Error check_text(const char* text) {
  if (text && std::strlen(text) >= 4096) return {EF_BAD_INPUT, "the image's path or the prompt has 4096 bytes or more: use a shorter one"};
  if (text && !is_utf8(text)) return {EF_BAD_INPUT, "the image's path or the prompt is not UTF-8: convert it, or rename the file"};
  return {};
}

Error null(const char* what) { return {EF_BAD_INPUT, std::string(what) + " is NULL: pass a pointer"}; }

}  // namespace

extern "C" {

uint32_t ef_abi_version(void) { return EF_ABI_MAJOR << 16 | EF_ABI_MINOR; }
const char* ef_version(void) { return EVERFACE_VERSION; }
const char* ef_last_error(void) { return last_error.c_str(); }

const char* ef_status_name(int status) {
  static const char* const names[] = {"EF_OK",      "EF_BAD_INPUT", "EF_UNAVAILABLE", "EF_VERSION",  "EF_LOST",
                                      "EF_TIMEOUT", "EF_CANCELLED", "EF_CLOSED",      "EF_NO_MEMORY"};
  return status >= 0 && status < static_cast<int>(sizeof names / sizeof *names) ? names[status] : "an unknown ef_status";
}

void ef_engine_config_defaults(ef_engine_config* config) {
  if (!config) return;
  *config = {};
  config->struct_size = sizeof *config;
  config->timeout_ms = 120000;
}

void ef_session_config_defaults(ef_session_config* config) {
  if (!config) return;
  *config = {};
  config->struct_size = sizeof *config;
  config->seed = 420;
  config->idle = config->paced = 1;
  config->format = EF_RGB24;
  config->playback_hz = 24000;
  config->outbox_ms = 2000;
  config->timeout_ms = 120000;
  config->cuda_device = -1;
}

void ef_stats_defaults(ef_stats* stats) {
  if (!stats) return;
  *stats = {};
  stats->struct_size = sizeof *stats;
}

void ef_image_defaults(ef_image* image) {
  if (!image) return;
  *image = {};
  image->struct_size = sizeof *image;
}

void ef_change_defaults(ef_change* change) {
  if (!change) return;
  *change = {};
  change->struct_size = sizeof *change;
}

ef_status ef_engine_open(const ef_engine_config* config, ef_engine** engine) {
  return guarded([&]() -> Error {
    if (!engine) return null("engine");
    *engine = nullptr;
    ef_engine_config c;
    if (Error error = take(config, c, ef_engine_config_defaults)) return error;
    auto made = std::make_shared<Engine>(c);
    if (Error error = made->start()) return error;
    if (c.socket_path && !c.fake) {
      Error error;
      const int probe = made->connect(error);
      if (probe < 0 && error.status != EF_TIMEOUT) return error;
      if (probe >= 0) everface::client::close_descriptor(probe);
    }
    *engine = new ef_engine{std::move(made)};
    return {};
  });
}

void ef_engine_cancel(ef_engine* engine) {
  if (engine)
    guarded([&]() -> Error {
      engine->engine->cancel();
      return {};
    });
}

void ef_engine_free(ef_engine* engine) { delete engine; }

ef_status ef_session_open(ef_engine* engine, const ef_session_config* config, ef_session** session) {
  return guarded([&]() -> Error {
    if (!engine) return null("engine");
    if (!session) return null("session");
    *session = nullptr;
    ef_session_config c;
    if (Error error = take(config, c, ef_session_config_defaults)) return error;
    if (!c.image || !*c.image) return {EF_BAD_INPUT, "no image is named: set config.image to the path of one"};
    for (const char* text : {c.image, c.prompt})
      if (Error error = check_text(text)) return error;
    if (c.format < EF_RGB24 || c.format > EF_I420) return {EF_BAD_INPUT, "the pixel format is unknown: choose EF_RGB24, EF_BGRA, EF_NV12 or EF_I420"};
    if (c.cuda_device >= 0 && c.format != EF_RGB24) return {EF_BAD_INPUT, "frames on a GPU come in EF_RGB24 only: set config.format to it"};
    const std::string image = everface::client::absolute(c.image);
    c.image = image.c_str();
    auto made = std::make_shared<Session>(engine->engine, c);
    engine->engine->add_waiting(made);
    if (Error error = made->open()) return error;
    *session = new ef_session{std::move(made)};
    return {};
  });
}

ef_status ef_session_push_audio(ef_session* session, const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels,
                                uint32_t timeout_ms, size_t* accepted) {
  return guarded([&]() -> Error {
    size_t taken = 0;
    if (accepted) *accepted = 0;
    if (!session) return null("session");
    const Error error = session->session->push(samples, count, format, rate_hz, channels, timeout_ms, taken);
    if (accepted) *accepted = taken;
    return error;
  });
}

ef_status ef_session_push_user_audio(ef_session* session, const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels) {
  return guarded([&] { return session ? session->session->push_user_audio(samples, count, format, rate_hz, channels) : null("session"); });
}

ef_status ef_session_change(ef_session* session, const ef_change* change, uint32_t timeout_ms) {
  return guarded([&]() -> Error {
    if (!session || !change) return null(session ? "change" : "session");
    ef_change c;
    if (Error error = take(change, c, ef_change_defaults)) return error;
    for (const char* text : {c.image, c.prompt})
      if (Error error = check_text(text)) return error;
    if (c.transition < EF_TRANSITION_NONE || c.transition > EF_TRANSITION_DISSOLVE)
      return {EF_BAD_INPUT, "the transition is unknown: choose one of ef_transition"};
    if (c.image && !*c.image) return {EF_BAD_INPUT, "no image is named: set change.image to the path of one, or to NULL"};
    if (!c.image && !c.prompt && !c.transition) return {EF_BAD_INPUT, "nothing is to be changed: name an image, a prompt or a transition"};
    const std::string image = c.image ? everface::client::absolute(c.image) : "";
    if (c.image) c.image = image.c_str();
    return session->session->change(c, timeout_ms);
  });
}

size_t ef_session_remark(ef_session* session, char* text, size_t size) {
  size_t length = 0;
  guarded([&]() -> Error {
    if (!session || (!text && size)) return null(session ? "text" : "session");
    length = session->session->remark(text, size);
    return {};
  });
  return length;
}

ef_status ef_session_end_segment(ef_session* session) {
  return guarded([&] { return session ? session->session->end_segment() : null("session"); });
}

ef_status ef_session_interrupt(ef_session* session, uint64_t* turn) {
  return guarded([&]() -> Error {
    uint64_t begun = 0;
    if (!session) return null("session");
    const Error error = session->session->interrupt(begun);
    if (turn) *turn = begun;
    return error;
  });
}

ef_status ef_session_poll(ef_session* session, uint32_t timeout_ms, const ef_event** event) {
  return guarded([&]() -> Error {
    if (!session || !event) return null(session ? "event" : "session");
    *event = nullptr;
    return session->session->poll(timeout_ms, *event);
  });
}

void ef_event_release(const ef_event* event) {
  if (!event) return;
  const std::unique_ptr<const Event> owned(static_cast<const Event*>(event));
  if (owned->session)
    guarded([&]() -> Error {
      owned->session->give_back(*owned);
      return {};
    });
}

ef_status ef_event_copy_image(const ef_event* event, const ef_image* image) {
  return guarded([&]() -> Error {
    if (!event || !image) return null(event ? "image" : "event");
    if (event->type != EF_EVENT_VIDEO) return {EF_BAD_INPUT, "the event holds no frame: copy images of EF_EVENT_VIDEO only"};
    if (event->cuda_data) return {EF_BAD_INPUT, "the frame is in the memory of a GPU: copy it with CUDA, from event.cuda_data"};
    ef_image out;
    if (Error error = take(image, out, ef_image_defaults)) return error;
    if (out.format < EF_RGB24 || out.format > EF_I420) return {EF_BAD_INPUT, "the image's pixel format is unknown: choose one of ef_pixel_format"};
    if (out.width != event->width || out.height != event->height)
      return {EF_BAD_INPUT, "the image is not of the frame's size, " + std::to_string(event->width) + "x" + std::to_string(event->height) + ": make it so"};
    for (int p = 0; p < everface::client::plane_count(out.format); ++p)
      if (!out.plane[p] || out.stride[p] < everface::client::row_bytes(out.format, p, out.width))
        return {EF_BAD_INPUT, "plane " + std::to_string(p) + " of the image is NULL, or its stride is shorter than a row: set both"};
    everface::client::convert(static_cast<const Event*>(event)->rgb, out);
    return {};
  });
}

int ef_session_fd(const ef_session* session) { return session ? session->session->descriptor() : -1; }

ef_status ef_session_stats(ef_session* session, uint32_t timeout_ms, ef_stats* stats) {
  return guarded([&]() -> Error {
    if (!session || !stats) return null(session ? "stats" : "session");
    ef_stats full;
    if (Error error = take(stats, full, ef_stats_defaults)) return error;
    if (Error error = session->session->stats(timeout_ms, full)) return error;
    const size_t size = stats->struct_size;
    std::memcpy(stats, &full, std::min(size, sizeof full));
    stats->struct_size = size;
    return {};
  });
}

void ef_session_cancel(ef_session* session) {
  if (session)
    guarded([&]() -> Error {
      session->session->cancel();
      return {};
    });
}

ef_status ef_session_close(ef_session* session, uint32_t drain_ms) {
  return guarded([&] { return session ? session->session->close(drain_ms) : null("session"); });
}

void ef_session_free(ef_session* session) {
  if (!session) return;
  guarded([&]() -> Error {
    session->session->free_descriptors();
    return {};
  });
  delete session;
}

}  // extern "C"
