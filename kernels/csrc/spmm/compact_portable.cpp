#include "spmm/compact.hpp"

// On x86-64 GCC also compiles the loop for AVX2 and picks at load time; elsewhere the baseline has vectors (NEON).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(SPDF_NO_CLONES)
#define SPDF_CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define SPDF_CLONES
#endif

namespace spdf {

namespace {

constexpr int64_t kWidth = 64;

SPDF_CLONES void rows16(const int64_t* start, const uint16_t* index, int64_t begin, int64_t end, const float* values,
                        const float* x, float* y) {
    for (int64_t r = begin; r < end; ++r) {
        float sum[kWidth] = {};
        for (int64_t i = start[r]; i < start[r + 1]; ++i) {
            const float value = values[i];
            const float* column = x + index[i] * kWidth;
            for (int64_t t = 0; t < kWidth; ++t) sum[t] += value * column[t];
        }
        for (int64_t t = 0; t < kWidth; ++t) y[r * kWidth + t] = sum[t];
    }
}

SPDF_CLONES void rows32(const int64_t* start, const uint32_t* index, int64_t begin, int64_t end, const float* values,
                        const float* x, float* y) {
    for (int64_t r = begin; r < end; ++r) {
        float sum[kWidth] = {};
        for (int64_t i = start[r]; i < start[r + 1]; ++i) {
            const float value = values[i];
            const float* column = x + index[i] * kWidth;
            for (int64_t t = 0; t < kWidth; ++t) sum[t] += value * column[t];
        }
        for (int64_t t = 0; t < kWidth; ++t) y[r * kWidth + t] = sum[t];
    }
}

void kernel(const Rows& rows, int64_t begin, int64_t end, const float* values, const float* x, float* y) {
    if (rows.index16) {
        rows16(rows.start, rows.index16, begin, end, values, x, y);
    } else {
        rows32(rows.start, rows.index32, begin, end, values, x, y);
    }
}

}  // namespace

const CompactBackend kPortableCompact = {kernel, kWidth, &kPortablePacking};

}  // namespace spdf
