#include "comm/shaped_transport.h"

#include <fmt/format.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <ctime>
#include <limits>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"

namespace duet {
namespace {

// Politely and exactly: the default timer slack of 50 us would be as long as the latency to model.
// Set at every call, because a lane's thread is not known before it calls.
void sleep_until_ns(int64_t deadline_ns) {
  if (now_ns() >= deadline_ns) return;
  prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
  timespec when{};
  when.tv_sec = deadline_ns / 1'000'000'000;
  when.tv_nsec = deadline_ns % 1'000'000'000;
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, nullptr) == EINTR) {
  }
}

class ShapedTransport final : public Transport {
 public:
  ShapedTransport(std::unique_ptr<Transport> inner, std::shared_ptr<const SharedLink> link)
      : inner_(std::move(inner)), link_(std::move(link)), name_(std::string("shaped ") + inner_->name()) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  int local_rank() const override { return inner_->local_rank(); }
  int local_size() const override { return inner_->local_size(); }
  const char* name() const override { return name_.c_str(); }

  void exchange(std::span<const ConstBytes> send, std::span<const Bytes> recv) override {
    if (size() == 1) return;
    inner_->barrier();  // the link starts when the last rank is there
    const int64_t start_ns = now_ns();
    inner_->exchange(send, recv);
    take_time(start_ns, send, [&](size_t r) { return recv[r].size(); });
  }

  void exchange_up_to(std::span<const ConstBytes> send, std::span<const Bytes> recv,
                      std::span<size_t> received) override {
    if (size() == 1) return;
    inner_->barrier();
    const int64_t start_ns = now_ns();
    inner_->exchange_up_to(send, recv, received);
    take_time(start_ns, send, [&](size_t r) { return received[r]; });
  }

  void barrier() override {
    if (size() == 1) return;
    inner_->barrier();
    sleep_until_ns(now_ns() + link_->latency_ns.load());
  }

  void abort(const std::string& reason) noexcept override { inner_->abort(reason); }

 private:
  template <typename ReceivedFrom>
  void take_time(int64_t start_ns, std::span<const ConstBytes> send, const ReceivedFrom& received_from) {
    size_t out = 0;
    size_t in = 0;
    for (size_t r = 0; r < send.size(); ++r) {
      if (static_cast<int>(r) == rank()) continue;
      out += send[r].size();
      in += received_from(r);
    }
    const size_t bytes = std::max(out, in);
    if (bytes == 0) return;
    const double wire_ns = static_cast<double>(bytes) / link_->bytes_per_second.load() * 1e9;
    sleep_until_ns(start_ns + link_->latency_ns.load() + static_cast<int64_t>(wire_ns));
  }

  std::unique_ptr<Transport> inner_;
  std::shared_ptr<const SharedLink> link_;
  std::string name_;
};

struct Unit {
  std::string_view name;
  double factor;
};

[[noreturn]] void bad(const char* what, const std::string& text, const char* why, const char* examples) {
  throw Error(ErrorKind::kInvalidArgument, fmt::format("{} '{}': {}; write {}", what, text, why, examples));
}

// The number at the start of `text`; `unit` gets the rest without blanks between.
double split_number(const char* what, const std::string& text, const char* examples, std::string& unit) {
  size_t used = 0;
  double value = 0;
  // stod also reads blanks, signs, hex, "inf" and "nan": only digits may start a number here.
  if (text.empty() || !(std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '.')) {
    bad(what, text, text.starts_with('-') ? "must be above zero" : "does not start with a number", examples);
  }
  if (text.find_first_of("xX") != std::string::npos) bad(what, text, "unknown unit", examples);
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    bad(what, text, "not a number", examples);
  }
  while (used < text.size() && text[used] == ' ') ++used;
  unit = text.substr(used);
  if (!(value > 0)) bad(what, text, "must be above zero", examples);
  return value;
}

double prefix_factor(std::string_view prefix, bool& known) {
  static constexpr std::array<Unit, 9> kPrefixes{{{"", 1},
                                                  {"k", 1e3},
                                                  {"m", 1e6},
                                                  {"g", 1e9},
                                                  {"t", 1e12},
                                                  {"ki", 1024.0},
                                                  {"mi", 1048576.0},
                                                  {"gi", 1073741824.0},
                                                  {"ti", 1099511627776.0}}};
  std::string lower(prefix);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const Unit& p : kPrefixes) {
    if (p.name == lower) {
      known = true;
      return p.factor;
    }
  }
  known = false;
  return 0;
}

}  // namespace

std::unique_ptr<Transport> make_shaped_transport(std::unique_ptr<Transport> inner, LinkShape shape) {
  if (!(shape.bytes_per_second > 0)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("link bandwidth of {} bytes/s: must be above zero", shape.bytes_per_second));
  }
  if (shape.latency_ns < 0) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("link latency of {} ns: must not be negative", shape.latency_ns));
  }
  return make_shaped_transport(std::move(inner), std::make_shared<const SharedLink>(shape));
}

std::unique_ptr<Transport> make_shaped_transport(std::unique_ptr<Transport> inner,
                                                 std::shared_ptr<const SharedLink> link) {
  return std::make_unique<ShapedTransport>(std::move(inner), std::move(link));
}

double parse_bandwidth(const std::string& text) {
  static constexpr const char* kExamples = "for example 1gbit, 400mbit, 10Gbps or 125MB/s";
  std::string unit;
  const double value = split_number("bandwidth", text, kExamples, unit);
  std::string_view rest = unit;
  // "Bps" is bytes in tc as well, hence the case of b decides, whatever follows.
  for (std::string_view tail : {std::string_view("/s"), std::string_view("ps")}) {
    if (rest.ends_with(tail)) {
      rest.remove_suffix(tail.size());
      break;
    }
  }
  double per_unit = 0;
  if (rest.ends_with('B')) {
    per_unit = 1;
    rest.remove_suffix(1);
  } else if (rest.ends_with("bit") || rest.ends_with("Bit") || rest.ends_with("BIT")) {
    per_unit = 0.125;
    rest.remove_suffix(3);
  } else if (rest.ends_with('b')) {
    per_unit = 0.125;
    rest.remove_suffix(1);
  } else {
    bad("bandwidth", text, rest.empty() ? "has no unit" : "unknown unit", kExamples);
  }
  bool known = false;
  const double factor = prefix_factor(rest, known);
  if (!known) bad("bandwidth", text, "unknown unit", kExamples);
  return value * factor * per_unit;
}

int64_t parse_duration(const std::string& text) {
  static constexpr const char* kExamples = "for example 50us, 1.5ms or 2s";
  static constexpr std::array<Unit, 5> kUnits{{{"ns", 1}, {"us", 1e3}, {"µs", 1e3}, {"ms", 1e6}, {"s", 1e9}}};
  std::string unit;
  const double value = split_number("duration", text, kExamples, unit);
  for (const Unit& u : kUnits) {
    if (u.name != unit) continue;
    const double ns = std::round(value * u.factor);
    if (ns < 1 || ns > 9e18) bad("duration", text, "must lie between 1ns and 9e9s", kExamples);
    return static_cast<int64_t>(ns);
  }
  bad("duration", text, unit.empty() ? "has no unit" : "unknown unit", kExamples);
}

}  // namespace duet
