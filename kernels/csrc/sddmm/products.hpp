// The products of one block, for each instruction set.
//
// Packed operands are panels: for each row of W (dy) or column (x) a run of `vectors` chunks of 64 bytes. A chunk holds
// the values at 16 successive tokens in fp32, or at 32 tokens in bf16. Tokens past the end are zero.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sddmm/schedule.hpp"

namespace spdf::sddmm {

constexpr int kChunkFloats = 16;  // 64 bytes, also when they hold bf16

// Panels have 8, 4, 2 or 1 chunks per feature: long runs first, the last tokens in shorter ones.
constexpr int kVectorCounts[] = {8, 4, 2, 1};

// Adds the products of one block to `sums`, in the order of its `columns`.
using BlockProducts = void (*)(const BlockView& block, const float* y_panel, const float* x_panel, float* sums);

struct Products {
    BlockProducts by_vectors[4];  // as in kVectorCounts
};

extern const Products kPortableProducts;
#if defined(__x86_64__)
extern const Products kAvx2Products;  // products_avx2.cpp
extern const Products kAvx512Products;
extern const Products kAvx512Bf16Products;  // panels hold bf16
#endif

// Kernel::Row is one row of packed dy, in registers or in memory as the kernel needs it. Internal linkage: each
// instruction set compiles its own functions.
namespace {

// The position of a bucket: its rows, their columns and sums, and the packed x of the next block, for prefetches.
struct Cursor {
    const uint16_t* rows;
    const uint8_t* columns;
    float* sums;
    const float* next_x;
    int lines;  // of next_x that each row prefetches
};

// Rows of one bucket. Kernel::group<size> adds the products of `size` entries of one row; a row's entries are cut into
// `large` groups of `size` and `small` ones of one less.
template <class Kernel, int size>
void run_bucket(const Bucket& bucket, int large, int small, const float* y, const float* x, Cursor& at) {
    // Copies, so that the compiler can keep them in registers across the stores of sums.
    const uint8_t* columns = at.columns;
    const uint16_t* rows = at.rows;
    float* sums = at.sums;
    const float* next_x = at.next_x;
    const int count = bucket.rows, lines = at.lines;
    for (int i = 0; i < count; ++i) {
        const typename Kernel::Row y_row(y + int64_t{rows[i]} * (Kernel::kVectors * kChunkFloats));
        // Each row prefetches its share of the next block's x from L2 or L3 into L1.
        for (int line = 0; line < lines; ++line, next_x += kChunkFloats) __builtin_prefetch(next_x);
        for (int g = 0; g < large; ++g, columns += size, sums += size) {
            Kernel::template group<size>(columns, y_row, x, sums);
        }
        if constexpr (size > 1) {
            for (int g = 0; g < small; ++g, columns += size - 1, sums += size - 1) {
                Kernel::template group<size - 1>(columns, y_row, x, sums);
            }
        }
    }
    at = {rows + count, columns, sums, next_x, lines};
}

template <class Kernel>
void run_block(const BlockView& block, const float* y, const float* x, float* sums) {
    constexpr decltype(&run_bucket<Kernel, 1>) by_size[] = {
        run_bucket<Kernel, 1>, run_bucket<Kernel, 2>, run_bucket<Kernel, 3>, run_bucket<Kernel, 4>,
        run_bucket<Kernel, 5>, run_bucket<Kernel, 6>, run_bucket<Kernel, 7>, run_bucket<Kernel, 8>};
    static_assert(sizeof by_size / sizeof *by_size == kLargestGroup);
    int rows = 0;
    for (uint32_t b = 0; b < block.count; ++b) rows += block.buckets[b].rows;
    const int lines = block.width * Kernel::kVectors;
    Cursor at{block.rows, block.columns, sums, x + lines * kChunkFloats, (lines + rows - 1) / std::max(rows, 1)};
    for (uint32_t b = 0; b < block.count; ++b) {
        const Bucket& bucket = block.buckets[b];
        const int groups = (bucket.entries + kLargestGroup - 1) / kLargestGroup;
        const int size = (bucket.entries + groups - 1) / groups;
        const int small = groups * size - bucket.entries;
        by_size[size - 1](bucket, groups - small, small, y, x, at);
    }
}

}  // namespace

}  // namespace spdf::sddmm
