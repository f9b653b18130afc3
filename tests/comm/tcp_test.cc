// The TCP transport on ranks that are threads of this process: every collective, and what happens when
// a rank leaves, disagrees or is a stranger.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/collective_cases.h"
#include "comm/communicator.h"
#include "comm/tcp_address.h"
#include "comm/tcp_connect.h"
#include "comm/tcp_transport.h"

namespace duet {
namespace {

struct Meeting {
  explicit Meeting(int ranks, int pause)
      : texts(static_cast<size_t>(ranks)), barrier(ranks), pause_ms(pause) {}
  std::vector<std::string> texts;
  std::barrier<> barrier;
  int pause_ms;  // before ranks meet
};

class ThreadWorld final : public JobWorld {
 public:
  ThreadWorld(Meeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(meeting_.texts.size()); }
  int local_rank() const override { return rank(); }
  int local_size() const override { return size(); }
  std::vector<std::string> all_gather(const std::string& own) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(meeting_.pause_ms));
    meeting_.texts[static_cast<size_t>(rank_)] = own;
    meeting_.barrier.arrive_and_wait();
    std::vector<std::string> all = meeting_.texts;
    meeting_.barrier.arrive_and_wait();
    return all;
  }
  void set_failed() noexcept override {}
  void abort(const std::string&) noexcept override {}

 private:
  Meeting& meeting_;
  int rank_;
};

// Runs `work` on every rank; what each threw, or "".
std::vector<std::string> run_tcp(int ranks, const std::function<void(int, std::unique_ptr<Transport>)>& work,
                                 int pause_ms = 0) {
  Meeting meeting(ranks, pause_ms);
  std::vector<std::string> errors(static_cast<size_t>(ranks));
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < ranks; ++r) {
      threads.emplace_back([&, r] {
        try {
          work(r, make_tcp_transport(std::make_unique<ThreadWorld>(meeting, r)));
        } catch (const Error& e) {
          errors[static_cast<size_t>(r)] = e.what();
          EXPECT_TRUE(e.kind() == ErrorKind::kPeer) << e.what();
        } catch (const std::exception& e) {
          errors[static_cast<size_t>(r)] = e.what();
        }
      });
    }
  }
  return errors;
}

void expect_none(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

// Sends send[r] bytes to rank r and gets recv[r] from it.
void exchange(Transport& t, const std::vector<size_t>& send, const std::vector<size_t>& recv) {
  std::vector<std::byte> out(std::accumulate(send.begin(), send.end(), size_t{0}));
  std::vector<std::byte> in(std::accumulate(recv.begin(), recv.end(), size_t{0}));
  std::vector<ConstBytes> sends;
  std::vector<Bytes> recvs;
  size_t o = 0, i = 0;
  for (size_t r = 0; r < send.size(); ++r) {
    sends.push_back(ConstBytes(out).subspan(o, send[r]));
    recvs.push_back(Bytes(in).subspan(i, recv[r]));
    o += send[r];
    i += recv[r];
  }
  t.exchange(sends, recvs);
}

class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

TEST(Tcp, AllCollectives) {
  for (const int ranks : {1, 2, 3, 5}) {
    for (const DType wire : {DType::kF32, DType::kBf16}) {
      expect_none(run_tcp(ranks, [&](int, std::unique_ptr<Transport> t) {
        EXPECT_STREQ(t->name(), "tcp");
        Communicator c(std::move(t), wire);
        for (const auto& test_case : test::collective_cases()) {
          SCOPED_TRACE(test_case.name);
          test_case.run(c);
        }
        c.barrier();
      }));
    }
  }
}

TEST(Tcp, MessagesLargerThanEveryBuffer) {
  expect_none(run_tcp(3, [](int rank, std::unique_ptr<Transport> t) {
    const size_t bytes = (size_t{40} << 20) + 17;
    Communicator c(std::move(t), DType::kF32);
    std::vector<std::byte> own(bytes, static_cast<std::byte>(rank + 1));
    std::vector<std::byte> all(bytes * 3);
    c.all_gather_bytes(own, all);
    test::expect_blocks("large message", all, bytes);
  }));
}

TEST(Tcp, ARankThatRunsAheadWaitsInTheSocket) {
  expect_none(run_tcp(2, [](int rank, std::unique_ptr<Transport> t) {
    for (size_t i = 1; i <= 50; ++i) {
      const std::vector<size_t> some = {i * 1000, i * 1000}, none = {0, 0};
      if (rank == 0)
        exchange(*t, some, none);
      else
        exchange(*t, none, some);
    }
    t->barrier();
  }));
}

TEST(Tcp, DifferentSizesAreAnErrorOnBothSides) {
  // Less than expected leaves the receiver below its low-water mark: no data may wake it for long.
  for (const auto& [sent, expected] :
       {std::pair<size_t, size_t>{100, 1 << 20}, {1 << 20, 100}, {0, 100}, {100, 0}}) {
    const auto errors = run_tcp(2, [&, s = sent, x = expected](int rank, std::unique_ptr<Transport> t) {
      if (rank == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));  // until rank 1 waits
        exchange(*t, {0, s}, {0, 7});
      } else {
        exchange(*t, {7, 0}, {x, 0});
      }
      t->barrier();
      t->barrier();
    });
    EXPECT_NE(errors[1].find("rank 0 sends"), std::string::npos) << errors[1];
    EXPECT_NE(errors[1].find("the ranks disagree about a collective"), std::string::npos) << errors[1];
    EXPECT_NE(errors[0], "");
  }
}

TEST(Tcp, ALeavingRankIsNamed) {
  const auto errors = run_tcp(3, [](int rank, std::unique_ptr<Transport> t) {
    t->barrier();
    if (rank == 1) return;  // closes its connections
    exchange(*t, {1 << 20, 1 << 20, 1 << 20}, {1 << 20, 1 << 20, 1 << 20});
  });
  // Whoever notices first leaves too; the other may see that before.
  EXPECT_TRUE(errors[0].find("rank 1 on ") != std::string::npos ||
              errors[2].find("rank 1 on ") != std::string::npos)
      << errors[0] << errors[2];
  EXPECT_NE(errors[0], "");
  EXPECT_EQ(errors[1], "");
  EXPECT_NE(errors[2], "");
}

TEST(Tcp, AbortWakesOwnAndOtherRanks) {
  std::atomic<bool> aborted{false};
  const auto errors = run_tcp(3, [&aborted](int rank, std::unique_ptr<Transport> t) {
    t->barrier();
    if (rank == 0) {
      const std::jthread other([&t, &aborted] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        t->abort("disk on fire");
        t->abort("another reason");
        aborted = true;
        aborted.notify_all();
      });
      t->barrier();  // rank 2 does not come
    } else {
      if (rank == 2) aborted.wait(false);
      for (int i = 0; i < 3; ++i) t->barrier();  // the first may find what rank 0 sent before
    }
  });
  EXPECT_EQ(errors[0], "disk on fire");
  EXPECT_NE(errors[1], "");
  EXPECT_NE(errors[2], "");
}

TEST(Tcp, NothingWorksAfterAFailure) {
  const auto errors = run_tcp(2, [](int rank, std::unique_ptr<Transport> t) {
    if (rank == 1) return;
    EXPECT_THROW(t->barrier(), Error);
    t->barrier();
  });
  EXPECT_NE(errors[0].find("failed before"), std::string::npos) << errors[0];
}

int free_ports(int count) {
  for (int first = 28000; first < 60000; first += 64) {
    std::vector<Socket> held;
    for (int port = first; port < first + count; ++port) {
      Socket s(socket(AF_INET, SOCK_STREAM, 0));
      sockaddr_in a{};
      a.sin_family = AF_INET;
      a.sin_port = htons(static_cast<uint16_t>(port));
      if (bind(s.fd(), reinterpret_cast<sockaddr*>(&a), sizeof(a)) != 0) break;
      held.push_back(std::move(s));
    }
    if (std::ssize(held) == count) return first;
  }
  return 0;
}

// Ports that are known in advance, and strangers that speak on them, say nothing, or hang up.
TEST(Tcp, StrangersAreRefused) {
  const int first = free_ports(3);
  ASSERT_GT(first, 0);
  const Variable ports("DUET_TCP_PORTS", std::to_string(first) + "-" + std::to_string(first + 2));
  std::vector<std::jthread> strangers;
  for (int i = 0; i < 6; ++i) {
    strangers.emplace_back([first, i](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        Socket s(socket(AF_INET, SOCK_STREAM, 0));
        sockaddr_in a{};
        a.sin_family = AF_INET;
        a.sin_port = htons(static_cast<uint16_t>(first + i % 3));
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (connect(s.fd(), reinterpret_cast<sockaddr*>(&a), sizeof(a)) != 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          continue;
        }
        const char text[] = "GET / HTTP/1.1\r\nHost: a.very.curious.one\r\n\r\n";
        if (i < 3 && send(s.fd(), text, sizeof(text), MSG_NOSIGNAL) < 0) continue;
        char answer = 0;
        if (i < 3) {
          EXPECT_LE(recv(s.fd(), &answer, 1, 0), 0);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    });
  }
  // They come between the time when ranks listen and the time when ranks connect.
  expect_none(run_tcp(
      3, [](int, std::unique_ptr<Transport> t) { t->barrier(); }, 100));
}

TEST(Tcp, APortForEveryRankOrAMessage) {
  const int first = free_ports(2);
  ASSERT_GT(first, 0);
  const Variable ports("DUET_TCP_PORTS", std::to_string(first) + "-" + std::to_string(first + 1));
  for (const std::string& error : run_tcp(3, [](int, std::unique_ptr<Transport>) {}))
    EXPECT_NE(error.find("no free port in DUET_TCP_PORTS="), std::string::npos) << error;
}

TEST(Tcp, PortRange) {
  EXPECT_EQ(parse_port_range(""), std::pair(0, 0));
  EXPECT_EQ(parse_port_range("20000-20063"), std::pair(20000, 20063));
  EXPECT_EQ(parse_port_range("20000"), std::pair(20000, 20000));
  for (const char* bad : {"-", "0-5", "5-4", "70000", "1-70000", "a-b", "1-2-3", " 1-2", "1-", "-5"})
    EXPECT_THROW(parse_port_range(bad), Error) << bad;
}

TEST(Tcp, Interfaces) {
  EXPECT_EQ(match_interface("eth0,eth1", "eth1", "10.1.2.3"), 1);
  EXPECT_EQ(match_interface("eth0", "eth01", "10.1.2.3"), -1);
  EXPECT_EQ(match_interface("192.168.0.0/16,10.1.0.0/16", "e", "10.1.2.3"), 1);
  EXPECT_EQ(match_interface("10.1.2.0/30", "e", "10.1.2.3"), 0);
  EXPECT_EQ(match_interface("10.1.2.0/31", "e", "10.1.2.3"), -1);
  EXPECT_EQ(match_interface("10.1.2.3", "e", "10.1.2.3"), 0);
  EXPECT_EQ(match_interface("0.0.0.0/0", "e", "fd00::1"), -1);
  EXPECT_EQ(match_interface("fd00::/8", "e", "fd00::1"), 0);
  for (const char* bad : {"10.0.0.0/33", "10.0.0.0/", "10.0.0.0/x", "fd00::/129", "eth0/8"})
    EXPECT_THROW(match_interface(bad, "e", "10.1.2.3"), Error) << bad;
}

}  // namespace
}  // namespace duet
