#include "parallel.h"

#include <algorithm>
#include <dlfcn.h>

namespace everface::cpu {
namespace {

// The interface that GCC compiles `#pragma omp parallel` to. LLVM's runtime has it too.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();

struct Job {
  std::int64_t count;
  Number thread, threads;
  const std::function<void(int, std::int64_t, std::int64_t)>* work;
  int ranges;
};

void run(void* data) {
  Job& job = *static_cast<Job*>(data);
  const int thread = job.thread(), threads = job.threads();
  if (thread == 0) job.ranges = threads;
  (*job.work)(thread, job.count * thread / threads, job.count * (thread + 1) / threads);
}

}  // namespace

int parallel(std::int64_t count, int threads, const std::function<void(int, std::int64_t, std::int64_t)>& work) {
  static const auto fork = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  static const auto thread = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  static const auto number = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
  threads = static_cast<int>(std::min<std::int64_t>(threads, count));
  if (threads < 2 || !fork || !thread || !number) {
    work(0, 0, count);
    return 1;
  }
  Job job{count, thread, number, &work, threads};
  fork(&run, &job, static_cast<unsigned>(threads), 0);
  return job.ranges;
}

}  // namespace everface::cpu
