// A call that another thread runs: post and wait.
#pragma once

#include <functional>

namespace duet {

/// Hands `work` to `post`, which queues it for another thread, and returns when it has run; rethrows what it
/// throws. That thread must not be the caller's own.
void call_through(const std::function<void(std::function<void()>)>& post, const std::function<void()>& work);

}  // namespace duet
