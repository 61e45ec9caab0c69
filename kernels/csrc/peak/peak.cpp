#include "peak/peak.h"

#include <algorithm>
#include <chrono>

#include "cpu.hpp"
#include "peak/runs.hpp"

namespace {

double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Best rate of `run` in operations per second over all threads, of several runs that take about `seconds` together.
template <class Run>
double best_rate(int threads, double seconds, Run run) {
    constexpr int kRuns = 20;
    double best = 0.0;
    int64_t iterations = 1000;
    const double stop = seconds_now() + seconds;
    do {
        double operations = 0.0;
        const double start = seconds_now();
#pragma omp parallel num_threads(threads) reduction(+ : operations)
        operations += run(iterations);
        const double took = seconds_now() - start;
        best = std::max(best, operations / took);
        if (took < seconds / kRuns) iterations *= 2;
    } while (seconds_now() < stop);
    return best;
}

}  // namespace

extern "C" double spdf_fma_peak(int bf16, int threads, double seconds) {
    spdf::peak::Run run = bf16 ? nullptr : spdf::peak::run_portable;
#if defined(__x86_64__)
    if (!bf16 && spdf::has_avx2()) run = spdf::peak::run_avx2;
    if (!bf16 && spdf::has_avx512()) run = spdf::peak::run_avx512;
    if (bf16) run = spdf::has_avx512_bf16() ? spdf::peak::run_avx512_bf16 : nullptr;
#endif
    return run ? best_rate(threads, seconds, [=](int64_t iterations) { return run(iterations, 0.5f); }) : 0.0;
}

extern "C" double spdf_fma_fed([[maybe_unused]] int64_t bytes, [[maybe_unused]] int threads,
                               [[maybe_unused]] double seconds) {
#if defined(__x86_64__)
    if (spdf::has_avx512() && bytes >= 768) {
        return best_rate(threads, seconds,
                         [=](int64_t iterations) { return spdf::peak::run_fed_avx512(iterations, bytes); });
    }
#endif
    return 0.0;
}
