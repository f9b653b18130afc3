#include "comm/mpi_transport.h"

#include <fmt/format.h>

#include <cstdlib>
#include <string>

#include "base/error.h"

#ifdef DUET_HAVE_MPI
#include <sys/prctl.h>

#include <algorithm>
#include <ctime>
#include <vector>

#include "base/clock.h"
#include "comm/mpi_world.h"
#else
#include "comm/job_world.h"
#endif

namespace duet {
namespace {

int env_int(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

bool has_env(const char* name) {
  return std::getenv(name) != nullptr;
}

}  // namespace

bool launched_under_mpi() {
  // Open MPI's mpirun; Hydra (MPICH) and srun --mpi=pmi2; PMIx (srun --mpi=pmix). SLURM_PROCID alone
  // does not count: srun sets it for programs that have nothing to do with MPI.
  return has_env("OMPI_COMM_WORLD_SIZE") || has_env("PMI_RANK") || has_env("PMIX_RANK");
}

int mpi_world_size_from_env() {
  if (!launched_under_mpi()) return 1;
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"}) {
    if (const int n = env_int(name); n > 0) return n;
  }
  return 1;
}

#ifndef DUET_HAVE_MPI

bool have_mpi() {
  return false;
}
const char* mpi_library() {
  return "none";
}
std::unique_ptr<Transport> make_mpi_transport() {
  make_mpi_world();  // refuses by name
  return nullptr;
}

#else

namespace {

// Messages travel in chunks, so that the library works on several at once and no count passes what
// an int holds; at most 64 of them per message.
constexpr size_t kMinChunk = size_t{512} << 10;
constexpr size_t kMaxChunks = 64;
// Tests in a row before each sleep: the library moves about one fragment per call.
constexpr int kTestsPerWake = 4;
constexpr int64_t kShortestSleepNs = 20'000;
constexpr int64_t kLongestSleepNs = 200'000;   // best for MiB messages on a 1 Gbit/s link (measured)
constexpr int64_t kIdleAfterNs = 200'000'000;  // nobody speaks: the server is idle
constexpr int64_t kIdleSleepNs = 1'000'000;
constexpr int kTag = 0;  // messages of a pair never overtake each other

size_t chunk_bytes(size_t message_bytes) {
  return std::max(kMinChunk, (message_bytes + kMaxChunks - 1) / kMaxChunks);
}

// How long to sleep between tests, from how long such a transfer took before. The best bandwidth
// seen lately counts (it fades by 2 % a message), because a slow sample is mostly a late peer.
class Pace {
 public:
  void learn(size_t bytes, int64_t elapsed_ns) {
    if (bytes < 16384 || elapsed_ns <= 0) return;  // short messages tell of latency, not of bandwidth
    const double seen = static_cast<double>(bytes) / static_cast<double>(elapsed_ns);
    bytes_per_ns_ = std::max(seen, bytes_per_ns_ * 0.98);
  }
  int64_t expected_ns(size_t bytes) const {
    return static_cast<int64_t>(static_cast<double>(bytes) / bytes_per_ns_);
  }
  // An eighth of the expected time costs at most that much extra; later than twice the expected
  // time the peer is late, and the sleep grows with the wait.
  static int64_t sleep_ns(int64_t expected, int64_t waited) {
    if (waited > kIdleAfterNs) return kIdleSleepNs;
    const int64_t base = waited > 2 * expected ? waited / 8 : expected / 8;
    return std::clamp(base, kShortestSleepNs, kLongestSleepNs);
  }

 private:
  double bytes_per_ns_ = 0.125;  // 1 Gbit/s until the first message says better
};

void sleep_for_ns(int64_t ns) {
  timespec t{};
  t.tv_nsec = ns;
  nanosleep(&t, nullptr);
}

class MpiTransport final : public Transport {
 public:
  explicit MpiTransport(std::unique_ptr<MpiWorld> world)
      : world_(std::move(world)), comm_(world_->comm()), rank_(world_->rank()), size_(world_->size()) {
    byte_out_.resize(static_cast<size_t>(size_), std::byte{1});
    byte_in_.resize(static_cast<size_t>(size_));
    lengths_.resize(static_cast<size_t>(size_));
    received_lengths_.resize(static_cast<size_t>(size_));
    shortened_.resize(static_cast<size_t>(size_));
    for (size_t r = 0; r < lengths_.size(); ++r) {
      length_send_.push_back(std::as_bytes(std::span(lengths_).subspan(r, 1)));
      length_recv_.push_back(std::as_writable_bytes(std::span(received_lengths_).subspan(r, 1)));
    }
    for (size_t r = 0; r < byte_out_.size(); ++r) {
      barrier_send_.push_back(ConstBytes(byte_out_).subspan(r, 1));
      barrier_recv_.push_back(Bytes(byte_in_).subspan(r, 1));
    }
  }

  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return world_->local_rank(); }
  int local_size() const override { return world_->local_size(); }
  const char* name() const override { return "mpi"; }

  void exchange(std::span<const ConstBytes> send, std::span<const Bytes> recv) override {
    DUET_CHECK(std::ssize(send) == size_ && std::ssize(recv) == size_);
    if (broken_) throw Error(ErrorKind::kPeer, "MPI communication has failed before");
    try {
      const int64_t start_ns = now_ns();
      post(send, recv);
      wait(start_ns);
    } catch (...) {
      broken_ = true;
      world_->set_failed();
      throw;
    }
  }

  // Lengths first: a receive that is posted is for one message of a known length.
  void exchange_up_to(std::span<const ConstBytes> send, std::span<const Bytes> recv,
                      std::span<size_t> received) override {
    DUET_CHECK(std::ssize(received) == size_);
    for (size_t r = 0; r < lengths_.size(); ++r) lengths_[r] = send[r].size();
    exchange(length_send_, length_recv_);
    for (size_t r = 0; r < recv.size(); ++r) {
      if (static_cast<int>(r) == rank_) continue;
      received[r] = received_lengths_[r];
      if (received[r] > recv[r].size()) {
        broken_ = true;
        world_->set_failed();
        throw Error(ErrorKind::kPeer,
                    disagreement(static_cast<int>(r), received[r], rank_, recv[r].size(), true));
      }
      shortened_[r] = recv[r].first(received[r]);
    }
    exchange(send, shortened_);
  }

  void barrier() override { exchange(barrier_send_, barrier_recv_); }

  void abort(const std::string& reason) noexcept override { world_->abort(reason); }

 private:
  // Receives first, so that what arrives has a place; both sides starting with the next rank.
  void post(std::span<const ConstBytes> send, std::span<const Bytes> recv) {
    requests_.clear();
    expected_.clear();
    size_t out = 0;
    size_t in = 0;
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ + size_ - step) % size_;
      Bytes left = recv[static_cast<size_t>(peer)];
      in += left.size();
      for (const size_t chunk = chunk_bytes(left.size()); !left.empty();) {
        const size_t n = std::min(chunk, left.size());
        check_mpi(MPI_Irecv(left.data(), static_cast<int>(n), MPI_BYTE, peer, kTag, comm_,
                            &requests_.emplace_back()),
                  "MPI_Irecv");
        expected_.push_back({peer, n});
        left = left.subspan(n);
      }
    }
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ + step) % size_;
      ConstBytes left = send[static_cast<size_t>(peer)];
      out += left.size();
      for (const size_t chunk = chunk_bytes(left.size()); !left.empty();) {
        const size_t n = std::min(chunk, left.size());
        check_mpi(MPI_Isend(left.data(), static_cast<int>(n), MPI_BYTE, peer, kTag, comm_,
                            &requests_.emplace_back()),
                  "MPI_Isend");
        left = left.subspan(n);
      }
    }
    bytes_ = std::max(out, in);
  }

  void wait(int64_t start_ns) {
    if (requests_.empty()) return;
    statuses_.resize(requests_.size());
    const int64_t expected = pace_.expected_ns(bytes_);
    bool slack_set = false;
    for (int done = 0;;) {
      for (int i = 0; i < kTestsPerWake && done == 0; ++i) {
        const int code =
            MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, statuses_.data());
        if (code != MPI_SUCCESS) throw_failed(code);
      }
      if (done != 0) break;
      if (!slack_set) prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);  // else every sleep is 50 us longer
      slack_set = true;
      sleep_for_ns(Pace::sleep_ns(expected, now_ns() - start_ns));
    }
    pace_.learn(bytes_, now_ns() - start_ns);
    for (size_t i = 0; i < expected_.size(); ++i) {
      int count = 0;
      MPI_Get_count(&statuses_[i], MPI_BYTE, &count);
      if (static_cast<size_t>(count) == expected_[i].bytes) continue;
      throw Error(ErrorKind::kPeer,
                  disagreement(expected_[i].peer, static_cast<size_t>(count), rank_, expected_[i].bytes));
    }
  }

  [[noreturn]] void throw_failed(int code) {
    if (code == MPI_ERR_IN_STATUS) {
      for (size_t i = 0; i < requests_.size(); ++i) {
        const int error = statuses_[i].MPI_ERROR;
        if (error == MPI_SUCCESS || error == MPI_ERR_PENDING) continue;
        if (i < expected_.size()) {
          throw Error(ErrorKind::kPeer,
                      fmt::format("receiving {} bytes from rank {} on rank {} failed: {}", expected_[i].bytes,
                                  expected_[i].peer, rank_, mpi_error_text(error)));
        }
        code = error;
        break;
      }
    }
    throw Error(ErrorKind::kPeer,
                fmt::format("MPI exchange on rank {} failed: {}", rank_, mpi_error_text(code)));
  }

  struct Expected {
    int peer;
    size_t bytes;
  };

  std::unique_ptr<MpiWorld> world_;
  MPI_Comm comm_;
  int rank_;
  int size_;
  bool broken_ = false;
  size_t bytes_ = 0;
  Pace pace_;
  std::vector<MPI_Request> requests_;  // receives, then sends
  std::vector<MPI_Status> statuses_;
  std::vector<Expected> expected_;  // of the receives, in the order of requests_
  std::vector<std::byte> byte_out_;
  std::vector<std::byte> byte_in_;
  std::vector<ConstBytes> barrier_send_;
  std::vector<Bytes> barrier_recv_;
  std::vector<uint64_t> lengths_, received_lengths_;
  std::vector<ConstBytes> length_send_;
  std::vector<Bytes> length_recv_;
  std::vector<Bytes> shortened_;  // room for what is to come
};

}  // namespace

bool have_mpi() {
  return true;
}

const char* mpi_library() {
  static const std::string kText = [] {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return std::string("unknown MPI");
    std::string line(text, static_cast<size_t>(length));
    line = line.substr(0, line.find_first_of(",\n"));
    std::replace(line.begin(), line.end(), '\t', ' ');
    return line;
  }();
  return kText.c_str();
}

std::unique_ptr<Transport> make_mpi_transport() {
  return make_mpi_transport_on(std::make_unique<MpiWorld>());
}

std::unique_ptr<Transport> make_mpi_transport_on(std::unique_ptr<MpiWorld> world) {
  return std::make_unique<MpiTransport>(std::move(world));
}

#endif

}  // namespace duet
