// The machine code of one block of a mask, for each instruction set.
//
// Both are called as f(x, values, y, tiles, x_stride, y_stride), strides in bytes: for each of `tiles` tiles of 16
// tokens, y[row][16] += sum over the block's entries of value * x[input][16].
#pragma once

#include <cstddef>
#include <cstdint>

namespace spdf::jit {

struct Block {
    const uint32_t* words;    // per input: the rows that keep it, one bit per row
    const uint16_t* partner;  // of pairs: index of the second half of each input; null for single inputs
    int64_t inputs;
    int rows;
    bool first;         // the first block of its rows: sums start at zero, not at y
    int64_t entries;    // of the block
    int64_t passes;     // passes over tiles that prefetch the next block's code
    int64_t next_code;  // offset of the code that runs next, from this block's code
};

using BlockCode = void (*)(const float* x, const float* values, float* y, int64_t tiles, int64_t x_stride,
                           int64_t y_stride);

// Rows of a block at most. AVX-512: one accumulator per row; the 32nd vector register holds x.
constexpr int kMostRowsAvx512 = 31;
// AVX2: groups of 6 rows x 2 vectors of tokens; 12 accumulators, two registers for x, one for a value. A block of five
// groups reads x from the first-level cache five times.
constexpr int kMostRowsAvx2 = 30;

// Writes the code at `out` and returns its bytes; with out == nullptr it only counts.
size_t assemble_avx512(uint8_t* out, const Block& block);
size_t assemble_avx2(uint8_t* out, const Block& block);

}  // namespace spdf::jit
