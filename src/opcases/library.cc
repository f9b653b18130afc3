#include "opcases/library.h"

#include <dlfcn.h>

#include <string>

#include "opcases/op_case.h"

namespace duet {
namespace {

// As cblas.h has it: int arguments; 101 row-major, 111 as it stands, 112 transposed.
using Sgemm = void (*)(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda,
                       const float* b, int ldb, float beta, float* c, int ldc);
using SetThreads = void (*)(int);

struct Library {
  std::string name;
  Sgemm sgemm = nullptr;

  Library() {
    for (const char* file : {"libopenblas.so.0", "libopenblas.so"}) {
      void* handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
      if (!handle) continue;
      sgemm = reinterpret_cast<Sgemm>(dlsym(handle, "cblas_sgemm"));
      const auto set_threads = reinterpret_cast<SetThreads>(dlsym(handle, "openblas_set_num_threads"));
      if (!sgemm || !set_threads) continue;
      set_threads(1);
      name = "OpenBLAS";
      return;
    }
    sgemm = nullptr;
  }
};

const Library& library() {
  static const Library found;
  return found;
}

}  // namespace

const std::string& library_name() {
  return library().name;
}

bool opcases::library_sgemm(int64_t m, int64_t n, int64_t k, const float* a, const float* w, float* c) {
  const Library& l = library();
  if (!l.sgemm) return false;
  l.sgemm(101, 111, 112, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1.0f, a,
          static_cast<int>(k), w, static_cast<int>(k), 0.0f, c, static_cast<int>(n));
  return true;
}

}  // namespace duet
