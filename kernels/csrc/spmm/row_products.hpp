// The loop of the portable back end. Included by one source for the baseline and one for AVX2, so it is internal to
// each.
#pragma once

#include "spmm/compact.hpp"

namespace spdf {

namespace {

// The compiler's vector type, which it maps to the registers of the target.
constexpr int kLanes = 8;
constexpr int kVectors = 8;
constexpr int64_t kWidth = kLanes * kVectors;
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

template <class Index>
void row_products(const int64_t* start, const Index* index, int64_t begin, int64_t end, const InputBlock& block,
                  const float* values, const float* x, float* y) {
    for (int64_t r = begin; r < end; ++r) {
        auto* row = reinterpret_cast<Vector*>(y + r * kWidth);
        Vector sum[kVectors] = {};
        if (block.first > 0) {
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[v] = row[v];
        }
        int64_t i = block.cursor[r];
        for (; i < start[r + 1] && index[i] < block.last; ++i) {
            const auto* column = reinterpret_cast<const Vector*>(x + (index[i] - block.first) * kWidth);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[v] += values[i] * column[v];
        }
        block.cursor[r] = i;
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) row[v] = sum[v];
    }
}

void rows_kernel(const Rows& rows, int64_t begin, int64_t end, const InputBlock& block, const float* values,
                 const float* x, float* y) {
    if (rows.index16) {
        row_products(rows.start, rows.index16, begin, end, block, values, x, y);
    } else {
        row_products(rows.start, rows.index32, begin, end, block, values, x, y);
    }
}

}  // namespace

}  // namespace spdf
