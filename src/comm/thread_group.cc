#include "comm/thread_group.h"

#include <fmt/format.h>

#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "comm/communicator.h"

namespace duet {
namespace {

// What the ranks of one group share. An exchange is: publish the spans, meet, copy from the peers,
// meet again. Waiting is std::atomic::wait, a futex after a few hundred nanoseconds: two ranks with
// two lanes each share two cores, and a spinning comm lane would eat the compute it is to hide under.
struct Hub {
  explicit Hub(int ranks) : size(ranks), posts(static_cast<size_t>(ranks)) {}

  struct Post {
    std::span<const ConstBytes> send;
    std::span<const Bytes> recv;
    bool up_to = false;  // recv is room
  };

  void meet() {
    const uint32_t round = generation.load(std::memory_order_acquire);
    check_aborted();
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size)) {
      arrived.store(0, std::memory_order_relaxed);
      generation.fetch_add(1, std::memory_order_release);
      generation.notify_all();
    } else {
      generation.wait(round, std::memory_order_acquire);
    }
    check_aborted();
  }

  void check_aborted() {
    if (!aborted.load()) return;
    const std::lock_guard lock(mutex);
    throw Error(ErrorKind::kPeer, reason);
  }

  void abort(const std::string& text) noexcept {
    {
      const std::lock_guard lock(mutex);
      if (aborted.load()) return;
      try {
        reason = text;
      } catch (...) {  // no memory for the text: the wake-up matters more
      }
      aborted.store(true);
    }
    generation.fetch_add(1);
    generation.notify_all();
  }

  const int size;
  std::vector<Post> posts;
  std::atomic<uint32_t> arrived{0};
  std::atomic<uint32_t> generation{0};
  // Ranks that may be reading a peer's spans. One that leaves an exchange because of an abort waits
  // until it is 0: only then may its caller free what it had published.
  std::atomic<uint32_t> readers{0};
  std::atomic<bool> aborted{false};
  std::mutex mutex;
  std::string reason;
};

class ReaderScope {
 public:
  explicit ReaderScope(Hub& hub) : hub_(hub) { hub_.readers.fetch_add(1); }
  ~ReaderScope() {
    hub_.readers.fetch_sub(1);
    if (hub_.aborted.load()) hub_.readers.notify_all();
  }
  ReaderScope(const ReaderScope&) = delete;
  ReaderScope& operator=(const ReaderScope&) = delete;

 private:
  Hub& hub_;
};

class ThreadTransport final : public Transport {
 public:
  ThreadTransport(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return hub_->size; }
  const char* name() const override { return "threads"; }

  void exchange(std::span<const ConstBytes> send, std::span<const Bytes> recv) override {
    run(send, recv, {});
  }

  void exchange_up_to(std::span<const ConstBytes> send, std::span<const Bytes> recv,
                      std::span<size_t> received) override {
    DUET_CHECK(std::ssize(received) == hub_->size);
    run(send, recv, received);
  }

  void barrier() override {
    if (hub_->size > 1) hub_->meet();
  }

  void abort(const std::string& reason) noexcept override { hub_->abort(reason); }

 private:
  // `received` is empty where lengths are agreed.
  void run(std::span<const ConstBytes> send, std::span<const Bytes> recv, std::span<size_t> received) {
    DUET_CHECK(std::ssize(send) == hub_->size && std::ssize(recv) == hub_->size);
    if (hub_->size == 1) return;
    hub_->posts[static_cast<size_t>(rank_)] = {send, recv, !received.empty()};
    try {
      hub_->meet();
      copy_from_peers(send, recv, received);
      hub_->meet();
    } catch (...) {
      // Sequentially consistent with ReaderScope and its check: whoever counts itself in after this
      // has seen 0 finds the abort and copies nothing.
      for (uint32_t n = hub_->readers.load(); n != 0; n = hub_->readers.load()) hub_->readers.wait(n);
      throw;
    }
  }

  void copy_from_peers(std::span<const ConstBytes> send, std::span<const Bytes> recv,
                       std::span<size_t> received) {
    const ReaderScope scope(*hub_);
    hub_->check_aborted();
    // Starting with the next rank spreads the readers over the senders.
    for (int step = 1; step < hub_->size; ++step) {
      const int peer = (rank_ + step) % hub_->size;
      const auto p = static_cast<size_t>(peer);
      const Hub::Post& post = hub_->posts[p];
      const ConstBytes theirs = post.send[static_cast<size_t>(rank_)];
      check_sizes(peer, rank_, theirs.size(), recv[p].size(), !received.empty());
      check_sizes(rank_, peer, send[p].size(), post.recv[static_cast<size_t>(rank_)].size(), post.up_to);
      if (!received.empty()) received[p] = theirs.size();
      if (!theirs.empty()) std::memcpy(recv[p].data(), theirs.data(), theirs.size());
    }
  }

  void check_sizes(int from, int to, size_t sent, size_t expected, bool up_to) {
    if (up_to ? sent <= expected : sent == expected) return;
    const std::string text = disagreement(from, sent, to, expected, up_to);
    hub_->abort(text);
    throw Error(ErrorKind::kPeer, text);
  }

  std::shared_ptr<Hub> hub_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> ThreadGroup::create(int ranks) {
  if (ranks < 1) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{} thread ranks: at least 1 is needed", ranks));
  }
  auto hub = std::make_shared<Hub>(ranks);
  std::vector<std::unique_ptr<Transport>> transports;
  for (int r = 0; r < ranks; ++r) transports.push_back(std::make_unique<ThreadTransport>(hub, r));
  return transports;
}

void run_ranks(int ranks, DType wire, const std::function<void(int, Communicator&)>& fn,
               const std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)>& wrap) {
  std::vector<Communicator> comms;
  for (auto& transport : ThreadGroup::create(ranks)) {
    comms.emplace_back(wrap ? wrap(std::move(transport)) : std::move(transport), wire);
  }
  std::mutex mutex;
  std::exception_ptr first;
  const auto fail = [&](int rank, const char* what) {
    {
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
    }
    comms[static_cast<size_t>(rank)].abort(fmt::format("rank {} failed: {}", rank, what));
  };
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < ranks; ++r) {
      threads.emplace_back([&, r] {
        try {
          fn(r, comms[static_cast<size_t>(r)]);
        } catch (const std::exception& e) {
          fail(r, e.what());
        } catch (...) {
          fail(r, "unknown exception");
        }
      });
    }
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace duet
