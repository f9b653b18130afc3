#include "comm/tcp_transport.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "comm/tcp_connect.h"

namespace duet {

namespace {

// Precedes every message. Ranks count their exchanges, so a message that was meant for another one shows.
struct Header {
  uint64_t exchange = 0;
  uint64_t bytes = 0;
};

// Wake up when this much has arrived, or all: each wake-up costs the computing core two switches, and
// what arrived until then should still be in its second-level cache when it is copied out.
constexpr size_t kLowWater = size_t{256} << 10;
// Ranks that disagree may leave a rank waiting for more than was sent. After this long it looks at what
// there is.
constexpr int kPatienceMs = 1000;

// One peer, and what goes to and comes from it in the exchange under way. Counts include the header. Where
// only the sender knows the length, there is always a header, and the rest to receive is what it says.
struct Link {
  int rank = 0;
  TcpPeer peer;
  int low_water = 1;  // what the socket was told last
  Header out_header, in_header;
  ConstBytes out;
  Bytes in;
  size_t sent = 0, to_send = 0;
  size_t received = 0, to_receive = 0;
  bool any_length = false;

  bool sending() const { return sent < to_send; }
  bool receiving() const { return received < to_receive; }
};

// The rest of header and payload behind the first `done` bytes.
int rest_of(Header& header, std::byte* payload, size_t bytes, size_t done, std::array<iovec, 2>& parts) {
  int n = 0;
  if (done < sizeof(Header)) {
    parts[0] = {reinterpret_cast<std::byte*>(&header) + done, sizeof(Header) - done};
    n = 1;
    done = 0;
  } else {
    done -= sizeof(Header);
  }
  parts[static_cast<size_t>(n)] = {payload + done, bytes - done};
  return n + 1;
}

class TcpTransport final : public Transport {
 public:
  explicit TcpTransport(std::unique_ptr<JobWorld> world)
      : world_(std::move(world)), rank_(world_->rank()), size_(world_->size()) {
    std::vector<TcpPeer> peers = connect_ranks(*world_);
    // Starting with the next rank: not all of them send to rank 0 first.
    for (int step = 1; step < size_; ++step) {
      Link& link = links_.emplace_back();
      link.rank = (rank_ + step) % size_;
      link.peer = std::move(peers[static_cast<size_t>(link.rank)]);
    }
    byte_out_.resize(static_cast<size_t>(size_), std::byte{1});
    byte_in_.resize(static_cast<size_t>(size_));
    for (size_t r = 0; r < byte_out_.size(); ++r) {
      barrier_send_.push_back(ConstBytes(byte_out_).subspan(r, 1));
      barrier_recv_.push_back(Bytes(byte_in_).subspan(r, 1));
    }
    polled_.reserve(links_.size());
    polled_links_.reserve(links_.size());
  }

  TcpTransport(const TcpTransport&) = delete;
  TcpTransport& operator=(const TcpTransport&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return world_->local_rank(); }
  int local_size() const override { return world_->local_size(); }
  const char* name() const override { return "tcp"; }

  void exchange(std::span<const ConstBytes> send, std::span<const Bytes> recv) override {
    run(send, recv, false);
  }

  void exchange_up_to(std::span<const ConstBytes> send, std::span<const Bytes> recv,
                      std::span<size_t> received) override {
    DUET_CHECK(std::ssize(received) == size_);
    run(send, recv, true);
    for (const Link& link : links_)
      received[static_cast<size_t>(link.rank)] = link.to_receive - sizeof(Header);
  }

  void barrier() override { exchange(barrier_send_, barrier_recv_); }

  void abort(const std::string& reason) noexcept override {
    {
      std::lock_guard lock(abort_mutex_);
      if (aborted_.load()) return;
      abort_reason_ = reason;
      aborted_.store(true);
    }
    world_->abort(reason);
    // Where that returns: wakes this rank's poll() and the peers'.
    for (const Link& link : links_) shutdown(link.peer.socket.fd(), SHUT_RDWR);
  }

 private:
  void run(std::span<const ConstBytes> send, std::span<const Bytes> recv, bool any_length) {
    DUET_CHECK(std::ssize(send) == size_ && std::ssize(recv) == size_);
    try {
      check_aborted();
      if (broken_) throw Error(ErrorKind::kPeer, "TCP communication has failed before");
      begin(send, recv, any_length);
      finish();
    } catch (...) {
      broken_ = true;
      world_->set_failed();
      throw;
    }
  }

  void check_aborted() {
    if (!aborted_.load()) return;
    std::lock_guard lock(abort_mutex_);
    throw Error(ErrorKind::kPeer, abort_reason_);
  }

  void begin(std::span<const ConstBytes> send, std::span<const Bytes> recv, bool any_length) {
    ++exchange_;
    for (Link& link : links_) {
      const size_t r = static_cast<size_t>(link.rank);
      link.out = send[r];
      link.in = recv[r];
      link.out_header = {exchange_, link.out.size()};
      link.sent = link.received = 0;
      link.any_length = any_length;
      link.to_send = link.out.empty() && !any_length ? 0 : sizeof(Header) + link.out.size();
      link.to_receive = any_length ? sizeof(Header) : link.in.empty() ? 0 : sizeof(Header) + link.in.size();
    }
    for (Link& link : links_) send_some(link);
    for (Link& link : links_) receive_some(link);
  }

  void finish() {
    bool patient = true;
    while (true) {
      polled_.clear();
      polled_links_.clear();
      for (Link& link : links_) {
        if (!link.sending() && !link.receiving()) continue;
        if (link.receiving()) set_low_water(link, patient);
        const int events = (link.receiving() ? POLLIN : 0) | (link.sending() ? POLLOUT : 0);
        polled_.push_back({link.peer.socket.fd(), static_cast<short>(events), 0});
        polled_links_.push_back(&link);
      }
      if (polled_.empty()) return;
      const int ready = poll(polled_.data(), polled_.size(), patient ? kPatienceMs : -1);
      if (ready < 0 && errno != EINTR) throw Error(ErrorKind::kInternal, "poll() failed: " + text_of(errno));
      check_aborted();
      patient = ready != 0;
      for (size_t i = 0; ready > 0 && i < polled_.size(); ++i) {
        if (polled_[i].revents == 0) continue;
        send_some(*polled_links_[i]);
        receive_some(*polled_links_[i]);
      }
    }
  }

  void set_low_water(Link& link, bool patient) {
    const bool look = !patient && link.received < sizeof(Header);
    const int wanted = look ? 1 : static_cast<int>(std::min(kLowWater, link.to_receive - link.received));
    if (wanted == link.low_water) return;
    setsockopt(link.peer.socket.fd(), SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof(wanted));
    link.low_water = wanted;
  }

  void send_some(Link& link) {
    while (link.sending()) {
      std::array<iovec, 2> parts{};
      msghdr message{};
      message.msg_iov = parts.data();
      message.msg_iovlen = static_cast<size_t>(rest_of(
          link.out_header, const_cast<std::byte*>(link.out.data()), link.out.size(), link.sent, parts));
      const ssize_t n = sendmsg(link.peer.socket.fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n < 0) throw_lost(link, text_of(errno));
      link.sent += static_cast<size_t>(n);
    }
  }

  // Straight into its place; never beyond this message, so that the next one stays in the socket.
  void receive_some(Link& link) {
    while (link.receiving()) {
      std::array<iovec, 2> parts{};
      msghdr message{};
      message.msg_iov = parts.data();
      message.msg_iovlen = static_cast<size_t>(
          rest_of(link.in_header, link.in.data(), link.to_receive - sizeof(Header), link.received, parts));
      const ssize_t n = recvmsg(link.peer.socket.fd(), &message, MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n < 0) throw_lost(link, text_of(errno));
      if (n == 0) throw_lost(link, "it closed the connection");
      const bool had_header = link.received >= sizeof(Header);
      link.received += static_cast<size_t>(n);
      if (!had_header && link.received >= sizeof(Header)) {
        check_header(link);
        if (link.any_length) {
          link.to_receive = sizeof(Header) + link.in_header.bytes;
          continue;
        }
      }
      if (link.receiving() && link.received >= sizeof(Header)) return;  // most likely that was all
    }
  }

  void check_header(const Link& link) const {
    const Header& h = link.in_header;
    const bool fits = link.any_length ? h.bytes <= link.in.size() : h.bytes == link.in.size();
    if (h.exchange == exchange_ && fits) return;
    throw Error(
        ErrorKind::kPeer,
        disagreement(link.rank, h.bytes, rank_, link.in.size(), link.any_length) +
            (h.exchange == exchange_ ? "" : fmt::format(" (exchange {} against {})", h.exchange, exchange_)));
  }

  static std::string text_of(int code) { return std::generic_category().message(code); }

  [[noreturn]] void throw_lost(const Link& link, const std::string& why) {
    check_aborted();
    throw Error(ErrorKind::kPeer, fmt::format("rank {} on {} is gone, rank {} waits for it in vain: {}",
                                              link.rank, link.peer.host, rank_, why));
  }

  std::unique_ptr<JobWorld> world_;  // first: outlives the connections
  int rank_;
  int size_;
  std::vector<Link> links_;
  uint64_t exchange_ = 0;
  bool broken_ = false;
  std::vector<pollfd> polled_;
  std::vector<Link*> polled_links_;
  std::vector<std::byte> byte_out_;
  std::vector<std::byte> byte_in_;
  std::vector<ConstBytes> barrier_send_;
  std::vector<Bytes> barrier_recv_;
  std::mutex abort_mutex_;
  std::atomic<bool> aborted_{false};
  std::string abort_reason_;
};

}  // namespace

std::unique_ptr<Transport> make_tcp_transport(std::unique_ptr<JobWorld> world) {
  return std::make_unique<TcpTransport>(std::move(world));
}

}  // namespace duet
