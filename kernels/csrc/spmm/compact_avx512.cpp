#include "spmm/compact.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

namespace spdf {

namespace {

constexpr int kVectors = 16;  // one row x 256 tokens: 16 accumulators, one broadcast shared by 16 products
constexpr int64_t kWidth = 16 * kVectors;

template <class Index>
void row_products(const int64_t* start, const Index* index, int64_t begin, int64_t end, const InputBlock& block,
                  const float* values, const float* x, float* y) {
    for (int64_t r = begin; r < end; ++r) {
        float* row = y + r * kWidth;
        __m512 sum[kVectors];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[v] = block.first > 0 ? _mm512_loadu_ps(row + 16 * v) : _mm512_setzero_ps();
        int64_t i = block.cursor[r];
        for (; i < start[r + 1] && index[i] < block.last; ++i) {
            const __m512 value = _mm512_set1_ps(values[i]);
            const float* column = x + (static_cast<int64_t>(index[i]) - block.first) * kWidth;
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) sum[v] = _mm512_fmadd_ps(value, _mm512_loadu_ps(column + 16 * v), sum[v]);
        }
        block.cursor[r] = i;
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(row + 16 * v, sum[v]);
    }
}

void kernel(const Rows& rows, int64_t begin, int64_t end, const InputBlock& block, const float* values, const float* x,
            float* y) {
    if (rows.index16) {
        row_products(rows.start, rows.index16, begin, end, block, values, x, y);
    } else {
        row_products(rows.start, rows.index32, begin, end, block, values, x, y);
    }
}

}  // namespace

const CompactBackend kAvx512Compact = {kernel, kWidth, &kAvx512Packing};

}  // namespace spdf

#endif
