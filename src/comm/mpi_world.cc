#ifdef DUET_HAVE_MPI
#include "comm/mpi_world.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <system_error>
#include <thread>
#endif

#include "base/error.h"
#include "comm/job_world.h"

namespace duet {

#ifndef DUET_HAVE_MPI

std::unique_ptr<JobWorld> make_mpi_world() {
  throw Error(
      ErrorKind::kUnsupported,
      "this build has no MPI (it was configured with DUET_MPI=off): configure with -DDUET_MPI=openmpi "
      "or mpich, or use --distributed-executor-backend threads");
}

#else

namespace {
constexpr std::chrono::milliseconds kAbortPatience{500};
}

std::string mpi_error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return fmt::format("MPI error {}", code);
  return {text, static_cast<size_t>(length)};
}

void check_mpi(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  throw Error(ErrorKind::kPeer, fmt::format("{} failed: {}", what, mpi_error_text(code)));
}

MpiWorld::MpiWorld() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) {
    int level = MPI_THREAD_SINGLE;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level), "MPI_Init_thread");
    owns_mpi_ = true;
    if (level < MPI_THREAD_SERIALIZED) {
      throw Error(ErrorKind::kUnsupported,
                  "this MPI library allows calls from the main thread only (no MPI_THREAD_SERIALIZED); "
                  "use a build of it with thread support");
    }
  }
  // Calls on several requests have no communicator: MPICH reports their errors through the world's
  // handler, which would end the process without a word about the ranks.
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node),
            "MPI_Comm_split_type");
  check_mpi(MPI_Comm_rank(node, &local_rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(node, &local_size_), "MPI_Comm_size");
  MPI_Comm_free(&node);
}

MpiWorld::~MpiWorld() {
  // After a failure the peers are not in MPI_Finalize and never will be: leaving without it makes
  // mpirun end the job, calling it would hang.
  if (failed_ || std::uncaught_exceptions() > 0) return;
  MPI_Comm_free(&comm_);
  if (owns_mpi_) MPI_Finalize();
}

std::vector<std::string> MpiWorld::all_gather(const std::string& own) {
  const size_t ranks = static_cast<size_t>(size_);
  const int length = static_cast<int>(own.size());
  std::vector<int> lengths(ranks), offsets(ranks);
  check_mpi(MPI_Allgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, comm_), "MPI_Allgather");
  int total = 0;
  for (size_t r = 0; r < ranks; ++r) {
    offsets[r] = total;
    total += lengths[r];
  }
  std::string all(static_cast<size_t>(total), '\0');
  check_mpi(MPI_Allgatherv(own.data(), length, MPI_BYTE, all.data(), lengths.data(), offsets.data(), MPI_BYTE,
                           comm_),
            "MPI_Allgatherv");
  std::vector<std::string> texts;
  for (size_t r = 0; r < ranks; ++r) {
    texts.push_back(all.substr(static_cast<size_t>(offsets[r]), static_cast<size_t>(lengths[r])));
  }
  return texts;
}

void MpiWorld::abort(const std::string& reason) noexcept {
  std::fprintf(stderr, "duet: rank %d ends the job: %s\n", rank_, reason.c_str());
  std::fflush(stderr);
  // MPICH over UCX first waits in MPI_Abort until the peers have closed their side, which peers that
  // wait elsewhere (a socket, a long kernel) never do. A process that leaves without MPI_Finalize makes
  // the launcher end the job just as well.
  try {
    std::thread([] {
      std::this_thread::sleep_for(kAbortPatience);
      std::_Exit(1);
    }).detach();
  } catch (const std::system_error&) {
    std::_Exit(1);
  }
  MPI_Abort(comm_, 1);
}

std::unique_ptr<JobWorld> make_mpi_world() {
  return std::make_unique<MpiWorld>();
}

#endif

}  // namespace duet
