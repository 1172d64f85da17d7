// Another image or prompt, and what the engine says about an image.
#include <algorithm>
#include <cstring>

#include "protocol.h"
#include "session.h"

namespace everface::client {
namespace {

constexpr int64_t kSince = 3;  // minor version of the protocol
constexpr size_t kMostChanges = 16;
constexpr const char* kTransitions[] = {"", "cut", "dissolve"};

}  // namespace

Error Session::change(const ef_change& change, uint32_t timeout_ms) {
  const Time end = after(timeout_ms);
  Lock lock(mutex_);
  if (Error error = check_open()) return error;
  if (state_ != State::open) return {EF_UNAVAILABLE, "the engine is coming back: change again after EF_EVENT_RECOVERED"};
  if (engine_minor_ < kSince) return {EF_VERSION, "the engine is older than ef_session_change: use one of this library's version"};
  if (changes_.size() >= kMostChanges) return {EF_UNAVAILABLE, "so many changes wait for the engine already: change again later"};
  const int64_t number = ++change_count_;
  Change& asked = changes_[number];
  if (change.image) asked.image = change.image;
  if (change.prompt) asked.prompt = change.prompt;
  asked.has_prompt = change.prompt;
  Writer request(kChangeRequest, 5);
  request.integer(number).text(asked.image).text(asked.prompt).boolean(asked.has_prompt).text(kTransitions[change.transition]);
  Error error = send(request);
  if (!error) error = wait(lock, end, [&] { return asked.answered; });
  if (asked.answered) {
    error = asked.error;
  } else if (error.status == EF_TIMEOUT || error.status == EF_CANCELLED) {  // it may still happen
    asked.abandoned = true;
    return error;
  }
  changes_.erase(number);
  return error;
}

void Session::handle_change(Reader& r) {
  const auto found = changes_.find(r.integer());
  const int64_t status = r.integer();
  const std::string_view text = r.text(), remark = r.text();
  if (!r.ok() || found == changes_.end()) return;
  Change& change = found->second;
  if (status == EF_OK) {
    if (!change.image.empty()) image_ = change.image;
    if (change.has_prompt) prompt_ = change.prompt;
    remark_ = remark;
  } else {
    change.error = {status >= EF_BAD_INPUT && status <= EF_LOST ? static_cast<ef_status>(status) : EF_UNAVAILABLE, std::string(text)};
  }
  change.answered = true;
  if (change.abandoned) changes_.erase(found);
  changed_.notify_all();
}

// No answer will come any more.
void Session::abandon_changes(const Error& why) {
  for (auto each = changes_.begin(); each != changes_.end();) {
    Change& change = each->second;
    if (!change.answered) change.error = why;
    change.answered = true;
    each = change.abandoned ? changes_.erase(each) : std::next(each);
  }
}

size_t Session::remark(char* text, size_t size) {
  Lock lock(mutex_);
  if (size) {
    const size_t count = std::min(size - 1, remark_.size());
    std::memcpy(text, remark_.data(), count);
    text[count] = 0;
  }
  return remark_.size();
}

}  // namespace everface::client
