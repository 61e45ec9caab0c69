#include "cpu.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace spdf {

#if defined(__x86_64__)

bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

bool has_bf16_products() { return has_avx512_bf16(); }

bool is_intel() {
    __builtin_cpu_init();
    return __builtin_cpu_is("intel");
}

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool is_intel() { return false; }

bool has_bf16_products() {
#if defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long kBf16 = 1UL << 14;  // HWCAP2_BF16
    return (getauxval(AT_HWCAP2) & kBf16) != 0;
#else
    return false;
#endif
}

#endif

}  // namespace spdf
