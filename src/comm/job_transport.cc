#include "comm/job_transport.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "comm/job_world.h"
#ifdef DUET_HAVE_MPI
#include "comm/mpi_world.h"
#include "comm/tcp_transport.h"
#endif

namespace duet {

#ifndef DUET_HAVE_MPI

std::unique_ptr<Transport> make_job_transport(CommTransport) {
  make_mpi_world();  // refuses by name
  return nullptr;
}

#else

namespace {

bool has_fast_fabric() {
  for (const char* folder : {"/sys/class/infiniband", "/sys/class/cxi"}) {
    std::error_code ignored;
    std::filesystem::directory_iterator devices(folder, ignored);
    if (!ignored && devices != std::filesystem::directory_iterator()) return true;
  }
  return false;
}

const char* to_string(CommTransport choice) {
  return choice == CommTransport::kTcp ? "tcp" : choice == CommTransport::kMpi ? "mpi" : "auto";
}

bool choose_tcp(CommTransport choice, JobWorld& world) {
  const bool several_hosts = world.local_size() < world.size();
  const std::vector<std::string> all = world.all_gather(fmt::format(
      "{}{}{}", static_cast<int>(choice), several_hosts ? 'h' : '-', has_fast_fabric() ? 'f' : '-'));
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r][0] == all[0][0]) continue;
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("rank {} has comm_transport {}, rank 0 has {}: give every rank the same flags and "
                    "variables (--comm-transport, DUET_COMM_TRANSPORT)",
                    r, to_string(static_cast<CommTransport>(all[r][0] - '0')),
                    to_string(static_cast<CommTransport>(all[0][0] - '0'))));
  }
  if (choice != CommTransport::kAuto) return choice == CommTransport::kTcp;
  const auto any = [&](size_t place, char mark) {
    return std::any_of(all.begin(), all.end(), [&](const std::string& one) { return one[place] == mark; });
  };
  return any(1, 'h') && !any(2, 'f');
}

}  // namespace

std::unique_ptr<Transport> make_job_transport(CommTransport choice) {
  auto world = std::make_unique<MpiWorld>();
  if (choose_tcp(choice, *world)) return make_tcp_transport(std::move(world));
  return make_mpi_transport_on(std::move(world));
}

#endif

}  // namespace duet
