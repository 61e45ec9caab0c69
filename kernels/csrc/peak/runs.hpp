// Loops of multiply-adds; each returns the number of its operations.
#pragma once

#include <cstdint>

namespace spdf::peak {

using Run = double (*)(int64_t iterations, float seed);

double run_portable(int64_t iterations, float seed);
#if defined(__x86_64__)
double run_avx2(int64_t iterations, float seed);
double run_avx512(int64_t iterations, float seed);
double run_avx512_bf16(int64_t iterations, float seed);
// Each factor loaded from `bytes` of memory.
double run_fed_avx512(int64_t iterations, int64_t bytes);
#endif

}  // namespace spdf::peak
