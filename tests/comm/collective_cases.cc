#include "comm/collective_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace duet::test {

float sample(int rank, int64_t index) {
  uint64_t x = static_cast<uint64_t>(index) * 0x9E3779B97F4A7C15u +
               static_cast<uint64_t>(rank + 1) * 0xD1B54A32D192ED03u;
  x ^= x >> 31;
  x *= 0x94D049BB133111EBu;
  x ^= x >> 29;
  // Sign, an exponent from 2^-6 to 2^5, and all 23 bits of fraction.
  const auto exponent = static_cast<uint32_t>(121 + (x >> 32) % 12);
  return std::bit_cast<float>(static_cast<uint32_t>(x >> 63) << 31 | exponent << 23 |
                              static_cast<uint32_t>(x & 0x7fffff));
}

std::vector<float> samples(int rank, int64_t count, int64_t first) {
  std::vector<float> v(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) v[static_cast<size_t>(i)] = sample(rank, first + i);
  return v;
}

void expect(bool ok, const std::string& what) {
  if (!ok) throw std::runtime_error(what);
}

void expect_same(const std::string& what, const std::vector<float>& got, const std::vector<float>& want) {
  expect(got.size() == want.size(), fmt::format("{}: {} values, expected {}", what, got.size(), want.size()));
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::bit_cast<uint32_t>(got[i]) == std::bit_cast<uint32_t>(want[i])) continue;
    expect(false, fmt::format("{}: value {} is {:a}, expected {:a}", what, i, got[i], want[i]));
  }
}

void expect_blocks(const std::string& what, const std::vector<std::byte>& all, size_t block_bytes) {
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i] != static_cast<std::byte>(i / block_bytes + 1))
      expect(false, fmt::format("{}: byte {}", what, i));
  }
}

namespace {

// The oracles know nothing of slices, pieces or buffers.
float on_wire(const Communicator& c, float v) {
  return c.size() > 1 && c.wire() == DType::kBf16 ? to_f32(to_bf16(v)) : v;
}

float oracle_sum(const Communicator& c, int64_t index) {
  float sum = on_wire(c, sample(0, index));
  for (int r = 1; r < c.size(); ++r) sum = sum + on_wire(c, sample(r, index));
  return sum;
}

std::vector<float> oracle_all_reduce(const Communicator& c, int64_t count, int64_t first = 0) {
  std::vector<float> v(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) v[static_cast<size_t>(i)] = on_wire(c, oracle_sum(c, first + i));
  return v;
}

Rows rows_of(std::vector<float>& v, int64_t rows, int64_t cols) {
  return {v.data(), rows, cols};
}
ConstRows rows_of(const std::vector<float>& v, int64_t rows, int64_t cols) {
  return {v.data(), rows, cols};
}

// Ways to share `rows` rows: even, all on the last, every second rank empty, a triangle.
std::vector<std::vector<int64_t>> row_splits(int ranks, int64_t rows) {
  std::vector<std::vector<int64_t>> splits(4, std::vector<int64_t>(static_cast<size_t>(ranks) + 1, 0));
  for (int r = 1; r <= ranks; ++r) {
    const auto i = static_cast<size_t>(r);
    splits[0][i] = rows * r / ranks;
    splits[1][i] = r == ranks ? rows : 0;
    splits[2][i] = r == ranks ? rows : rows * (r / 2) / std::max(1, ranks / 2);
    splits[3][i] = rows * r * (r + 1) / (int64_t{ranks} * (ranks + 1));
  }
  return splits;
}

void all_reduce_equals_oracle(Communicator& c) {
  for (int64_t n : {0, 1, 2, 3, 7, 31, 33, 64, 127, 1009, 4099, 20011}) {
    const std::vector<float> in = samples(c.rank(), n);
    std::vector<float> out(in.size(), -1.0f);
    c.all_reduce(in, out);
    expect_same(fmt::format("all_reduce of {}", n), out, oracle_all_reduce(c, n));
    std::vector<float> in_place = in;
    c.all_reduce(in_place, in_place);
    expect_same(fmt::format("all_reduce of {} in place", n), in_place, out);
  }
}

void all_reduce_add_adds_rounded_sum(Communicator& c) {
  for (int64_t n : {1, 5, 97, 2053}) {
    std::vector<float> residual = samples(100, n);
    std::vector<float> want = oracle_all_reduce(c, n);
    for (size_t i = 0; i < want.size(); ++i) want[i] = residual[i] + want[i];
    c.all_reduce_add(samples(c.rank(), n), residual);
    expect_same(fmt::format("all_reduce_add of {}", n), residual, want);
  }
}

void all_reduce_of_strided_rows(Communicator& c) {
  const int64_t rows = 5;
  const int64_t cols = 37;
  const int64_t stride = 41;
  std::vector<float> in(static_cast<size_t>(rows * stride), NAN);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < cols; ++k)
      in[static_cast<size_t>(r * stride + k)] = sample(c.rank(), r * cols + k);
  }
  for (const bool add : {false, true}) {
    std::vector<float> out(static_cast<size_t>(rows * stride), 3.0f);
    std::vector<float> want = out;
    const std::vector<float> sums = oracle_all_reduce(c, rows * cols);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < cols; ++k) {
        const float sum = sums[static_cast<size_t>(r * cols + k)];
        want[static_cast<size_t>(r * stride + k)] = add ? 3.0f + sum : sum;
      }
    }
    const ConstRows from{in.data(), rows, cols, stride};
    const Rows to{out.data(), rows, cols, stride};
    add ? c.all_reduce_add(from, to) : c.all_reduce(from, to);
    expect_same("all_reduce of rows with gaps (gaps untouched)", out, want);
  }
}

// The contract behind dual-batch overlap: wherever a batch is cut, the bits are the same.
void all_reduce_does_not_depend_on_split(Communicator& c) {
  const int64_t rows = 40;
  const int64_t width = 19;
  const std::vector<float> in = samples(c.rank(), rows * width);
  std::vector<float> whole(in.size());
  c.all_reduce(in, whole);
  const std::span<const float> from(in);
  for (int64_t cut = 0; cut <= rows; ++cut) {
    for (int64_t second : {cut, (cut + rows) / 2}) {  // two pieces, three pieces
      std::vector<float> out(in.size());
      const std::array<int64_t, 4> borders{0, cut, second, rows};
      for (size_t p = 0; p < 3; ++p) {
        const auto at = static_cast<size_t>(borders[p] * width);
        const auto n = static_cast<size_t>((borders[p + 1] - borders[p]) * width);
        c.all_reduce(from.subspan(at, n), std::span(out).subspan(at, n));
      }
      expect_same(fmt::format("all_reduce cut at rows {} and {}", cut, second), out, whole);
    }
  }
}

void all_reduce_longer_than_a_piece(Communicator& c) {
  const int64_t n = Communicator::kPieceElements + 12345;
  std::vector<float> v = samples(c.rank(), n);
  c.all_reduce(v, v);
  // The oracle at places around every border that could matter; all of them would take long.
  for (int64_t i : {int64_t{0}, int64_t{1}, n / 3, Communicator::kPieceElements - 1,
                    Communicator::kPieceElements, Communicator::kPieceElements + 1, n - 1}) {
    expect_same(fmt::format("all_reduce in pieces, element {}", i), {v[static_cast<size_t>(i)]},
                oracle_all_reduce(c, 1, i));
  }
}

void reduce_scatter_equals_oracle(Communicator& c) {
  const int64_t width = 29;
  const auto self = static_cast<size_t>(c.rank());
  for (int64_t rows : {0, 1, 2, 5, 40}) {
    for (const auto& offsets : row_splits(c.size(), rows)) {
      const std::vector<float> in = samples(c.rank(), rows * width);
      const int64_t own = offsets[self + 1] - offsets[self];
      for (const bool add : {false, true}) {
        std::vector<float> out = samples(200 + c.rank(), own * width);
        std::vector<float> want = out;
        for (int64_t i = 0; i < own * width; ++i) {
          const float sum = oracle_sum(c, offsets[self] * width + i);  // not rounded again
          want[static_cast<size_t>(i)] = add ? want[static_cast<size_t>(i)] + sum : sum;
        }
        c.reduce_scatter_rows(rows_of(in, rows, width), offsets, rows_of(out, own, width), add);
        expect_same(fmt::format("reduce_scatter of {} rows, {} own", rows, own), out, want);
        if (add) continue;
        std::vector<float> in_place = in;
        const Rows own_rows = rows_of(in_place, rows, width).row_slice(offsets[self], own);
        c.reduce_scatter_rows(rows_of(std::as_const(in_place), rows, width), offsets, own_rows, false);
        const float* first = in_place.data() + offsets[self] * width;
        expect_same("reduce_scatter in place", std::vector<float>(first, first + own * width), want);
      }
    }
  }
}

void all_gather_rows_equals_oracle(Communicator& c) {
  const int64_t width = 23;
  const auto self = static_cast<size_t>(c.rank());
  for (int64_t rows : {0, 1, 2, 5, 41}) {
    for (const auto& offsets : row_splits(c.size(), rows)) {
      std::vector<float> want;
      for (int r = 0; r < c.size(); ++r) {
        const auto i = static_cast<size_t>(r);
        for (float v : samples(r, (offsets[i + 1] - offsets[i]) * width)) want.push_back(on_wire(c, v));
      }
      const int64_t own_rows = offsets[self + 1] - offsets[self];
      const std::vector<float> own = samples(c.rank(), own_rows * width);
      std::vector<float> out(static_cast<size_t>(rows * width), -1.0f);
      c.all_gather_rows(rows_of(own, own_rows, width), offsets, rows_of(out, rows, width));
      expect_same(fmt::format("all_gather of {} rows", rows), out, want);

      std::vector<float> in_place(static_cast<size_t>(rows * width), -1.0f);
      std::copy(own.begin(), own.end(), in_place.begin() + offsets[self] * width);
      const Rows all = rows_of(in_place, rows, width);
      c.all_gather_rows(all.row_slice(offsets[self], own_rows), offsets, all);
      expect_same(fmt::format("all_gather of {} rows in place", rows), in_place, want);
    }
  }
}

// counts[from][to] of one pattern of routing.
using CountTable = std::vector<std::vector<int32_t>>;

std::vector<CountTable> routings(int ranks) {
  const auto n = static_cast<size_t>(ranks);
  std::vector<CountTable> tables(5, CountTable(n, std::vector<int32_t>(n, 0)));
  for (size_t from = 0; from < n; ++from) {
    for (size_t to = 0; to < n; ++to) {
      tables[0][from][to] = 3;                                              // even
      tables[1][from][to] = to == n - 1 ? 7 : 0;                            // all to one rank
      tables[2][from][to] = from == 0 || to == 0 ? 0 : 2;                   // rank 0 sends and gets nothing
      tables[3][from][to] = static_cast<int32_t>((from * 5 + to * 3) % 4);  // uneven
    }
  }
  return tables;  // [4]: nobody says anything
}

void all_to_all_equals_oracle(Communicator& c) {
  const int64_t width = 13;
  const auto self = static_cast<size_t>(c.rank());
  for (const CountTable& table : routings(c.size())) {
    const std::vector<int32_t>& send_counts = table[self];
    std::vector<int32_t> want_counts, recv_counts(send_counts.size(), -1);
    std::vector<float> send;
    std::vector<float> want;
    constexpr size_t kRecord = 12;
    std::vector<std::byte> records;
    std::vector<std::byte> want_records;
    std::vector<int64_t> offsets{0};  // rank r has as many rows as it sends to any one rank
    // A value tells sender, receiver and place.
    const auto row_values = [&](size_t from, size_t to, int32_t count) {
      return samples(static_cast<int>(from * 64 + to), count * width);
    };
    for (size_t r = 0; r < send_counts.size(); ++r) {
      want_counts.push_back(table[r][self]);
      for (float v : row_values(self, r, send_counts[r])) send.push_back(v);
      for (float v : row_values(r, self, want_counts[r])) want.push_back(on_wire(c, v));
      records.insert(records.end(), static_cast<size_t>(send_counts[r]) * kRecord,
                     static_cast<std::byte>(self * 16 + r));
      want_records.insert(want_records.end(), static_cast<size_t>(want_counts[r]) * kRecord,
                          static_cast<std::byte>(r * 16 + self));
      offsets.push_back(offsets.back() + *std::max_element(table[r].begin(), table[r].end()));
    }
    // Room for two rows more than can come; what nothing came for stays as it was.
    std::vector<float> recv(static_cast<size_t>((offsets.back() + 2) * width), -5.0f);
    std::vector<std::byte> got_records(static_cast<size_t>(offsets.back()) * kRecord, std::byte{0xee});
    const auto rows = [&](const std::vector<float>& v) { return std::ssize(v) / width; };
    want.resize(recv.size(), -5.0f);
    want_records.resize(got_records.size(), std::byte{0xee});
    const ConstRows out = rows_of(std::as_const(send), rows(send), width);
    c.dispatch_rows(out, records, send_counts, rows_of(recv, rows(recv), width), got_records, offsets,
                    kRecord, recv_counts);
    expect(recv_counts == want_counts, "dispatch_rows: counts differ");
    expect(got_records == want_records, "dispatch_rows: records differ");
    expect_same("dispatch_rows", recv, want);
    std::fill(recv.begin(), recv.end(), -5.0f);
    c.all_to_all_rows(out, send_counts, rows_of(recv, rows(recv), width), recv_counts);
    expect_same("all_to_all_rows", recv, want);
  }
}

void gather_of_columns_is_exact(Communicator& c) {
  for (int64_t rows : {0, 1, 3, 17}) {
    for (const bool uneven : {false, true}) {
      std::vector<int64_t> widths;
      for (int r = 0; r < c.size(); ++r) widths.push_back(uneven ? (r % 3) * 50 + (r == 0 ? 1 : 0) : 33);
      const int64_t total = std::accumulate(widths.begin(), widths.end(), int64_t{0});
      const int64_t width = widths[static_cast<size_t>(c.rank())];
      const std::vector<float> own = samples(c.rank(), rows * width);
      for (int root : {0, c.size() - 1}) {
        const bool here = c.rank() == root;
        std::vector<float> out(static_cast<size_t>(here ? rows * total : 0));
        c.gather_rows_f32(rows_of(own, rows, width), widths, here ? rows_of(out, rows, total) : Rows{}, root);
        if (!here) continue;
        std::vector<float> want;
        for (int64_t row = 0; row < rows; ++row) {
          for (int r = 0; r < c.size(); ++r) {
            const int64_t w = widths[static_cast<size_t>(r)];
            for (int64_t k = 0; k < w; ++k) want.push_back(sample(r, row * w + k));
          }
        }
        expect_same(fmt::format("gather of {} rows", rows), out, want);
      }
    }
  }
}

void gather_of_wide_rows_in_pieces(Communicator& c) {
  const int64_t rows = 3;
  const int64_t width = 150'001;  // with two ranks a row is longer than a piece
  std::vector<int64_t> widths(static_cast<size_t>(c.size()), width);
  std::vector<float> own = samples(c.rank(), rows * width);
  std::vector<float> out(c.rank() == 0 ? static_cast<size_t>(rows * width * c.size()) : 0);
  c.gather_rows_f32(rows_of(std::as_const(own), rows, width), widths,
                    c.rank() == 0 ? rows_of(out, rows, width * c.size()) : Rows{}, 0);
  if (c.rank() != 0) return;
  for (int64_t row = 0; row < rows; ++row) {
    for (int r = 0; r < c.size(); ++r) {
      const float* got = out.data() + (row * c.size() + r) * width;
      expect_same(fmt::format("row {} from rank {}", row, r), {got[0], got[width - 1]},
                  {sample(r, row * width), sample(r, row * width + width - 1)});
    }
  }
}

void broadcasts_and_gathers_of_bytes(Communicator& c) {
  for (size_t bytes : {0, 1, 503, 504, 505, 100'000}) {
    for (int root : {0, c.size() - 1}) {
      std::vector<std::byte> want(bytes);
      for (size_t i = 0; i < bytes; ++i)
        want[i] = static_cast<std::byte>(i * 7 + static_cast<size_t>(root) + bytes);
      std::vector<std::byte> data = c.rank() == root ? want : std::vector<std::byte>(3);
      c.broadcast(data, root);
      expect(data == want, fmt::format("broadcast of {} bytes from {}", bytes, root));
      std::vector<std::byte> fixed = c.rank() == root ? want : std::vector<std::byte>(bytes);
      c.broadcast_bytes(fixed, root);
      expect(fixed == want, fmt::format("broadcast_bytes of {} from {}", bytes, root));
    }
    std::vector<std::byte> own(bytes, static_cast<std::byte>(c.rank() + 1));
    std::vector<std::byte> all(bytes * static_cast<size_t>(c.size()));
    c.all_gather_bytes(own, all);
    expect_blocks("all_gather_bytes", all, bytes);
  }
  std::vector<double> costs{static_cast<double>(c.rank()), static_cast<double>(-c.rank()), 0.1};
  c.all_reduce_max(costs);
  expect(costs == std::vector<double>{static_cast<double>(c.size() - 1), 0.0, 0.1}, "all_reduce_max");
}

void stats_count_calls_and_bytes(Communicator& c) {
  c.reset_stats();
  const int64_t n = 64 * c.size();
  std::vector<float> v = samples(c.rank(), n);
  c.all_reduce(v, v);
  c.all_reduce(v, v);
  c.barrier();
  const CommStats& s = c.stats();
  // Each of two rounds sends every slice but one's own, or one's own to everybody else.
  const int64_t bytes = 2 * 2 * 64 * (c.size() - 1) * static_cast<int64_t>(dtype_bytes(c.wire()));
  expect(s.of(CollectiveKind::kAllReduce).calls == 2, "two all_reduce calls");
  expect(s.of(CollectiveKind::kAllReduce).bytes_sent == bytes,
         fmt::format("{} bytes sent, expected {}", s.of(CollectiveKind::kAllReduce).bytes_sent, bytes));
  expect(s.of(CollectiveKind::kAllReduce).time_ns > 0, "time of all_reduce");
  expect(s.of(CollectiveKind::kBarrier).calls == 1, "one barrier");
  expect(s.total().calls == 3 && s.total().bytes_sent == bytes, "totals");
}

void reserved_buffers_do_not_grow(Communicator& c) {
  const int64_t width = 50;
  const int64_t rows = 20;
  constexpr size_t kRecord = 8;
  c.reserve(rows * width, rows * c.size() * (width + static_cast<int64_t>(kRecord / 2)));
  c.reset_stats();
  std::vector<float> v = samples(c.rank(), rows * width);
  c.all_reduce(v, v);
  c.all_reduce_add(samples(c.rank(), rows * width), v);
  const std::vector<int64_t> offsets = row_splits(c.size(), rows)[1];
  const int64_t own = c.rank() == c.size() - 1 ? rows : 0;
  std::vector<float> mine(static_cast<size_t>(own * width));
  c.reduce_scatter_rows(rows_of(std::as_const(v), rows, width), offsets, rows_of(mine, own, width), false);
  c.all_gather_rows(rows_of(std::as_const(mine), own, width), offsets, rows_of(v, rows, width));
  std::vector<int32_t> out(static_cast<size_t>(c.size()), 0);
  out[0] = static_cast<int32_t>(rows);
  std::vector<int32_t> in(out.size());
  std::vector<float> recv(static_cast<size_t>(rows * width * c.size()));
  std::vector<std::byte> records(static_cast<size_t>(rows) * kRecord), got(records.size() * out.size());
  std::vector<int64_t> each{0};
  for (size_t r = 0; r < out.size(); ++r) each.push_back(each.back() + rows);
  c.dispatch_rows(rows_of(std::as_const(v), rows, width), records, out, rows_of(recv, rows * c.size(), width),
                  got, each, kRecord, in);
  c.all_to_all_rows(rows_of(std::as_const(v), rows, width), out, rows_of(recv, rows * c.size(), width), in);
  expect(c.stats().buffer_growths == 0, fmt::format("{} growths", c.stats().buffer_growths));
}

void many_small_collectives(Communicator& c) {
  for (int i = 0; i < 100; ++i) {
    const int64_t n = 1 + i % 40;
    std::vector<float> v = samples(c.rank(), n, i);
    c.all_reduce(v, v);
    expect_same(fmt::format("small all_reduce {}", i), v, oracle_all_reduce(c, n, i));
    if (i % 3 == 0) c.barrier();
    std::vector<std::byte> data(c.rank() == 0 ? static_cast<size_t>(i) : 0);
    c.broadcast(data, 0);
    expect(data.size() == static_cast<size_t>(i), "small broadcast");
  }
}

}  // namespace

const std::vector<CollectiveCase>& collective_cases() {
  static const std::vector<CollectiveCase> kCases{
      {"AllReduce", all_reduce_equals_oracle},
      {"AllReduceAdd", all_reduce_add_adds_rounded_sum},
      {"AllReduceStrided", all_reduce_of_strided_rows},
      {"AllReduceSplit", all_reduce_does_not_depend_on_split},
      {"AllReducePieces", all_reduce_longer_than_a_piece},
      {"ReduceScatter", reduce_scatter_equals_oracle},
      {"AllGather", all_gather_rows_equals_oracle},
      {"AllToAll", all_to_all_equals_oracle},
      {"GatherColumns", gather_of_columns_is_exact},
      {"GatherWide", gather_of_wide_rows_in_pieces},
      {"Bytes", broadcasts_and_gathers_of_bytes},
      {"Stats", stats_count_calls_and_bytes},
      {"Reserve", reserved_buffers_do_not_grow},
      {"ManySmall", many_small_collectives},
  };
  return kCases;
}

}  // namespace duet::test
