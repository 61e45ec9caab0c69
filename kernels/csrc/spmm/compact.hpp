// SpMM from compressed rows: one row's kept entries at a time, over a group of tokens held in registers.
#pragma once

#include <cstdint>

#include "pack/pack.hpp"
#include "spmm/rows.hpp"
#include "spmm/scratch.hpp"

namespace spdf {

// A block of inputs, and the position of each row in it.
struct InputBlock {
    int64_t first;    // first input of x
    int64_t last;     // one past the last input of x
    int64_t* cursor;  // [count] next entry of each row; moved past the block
};

// y[r * width + t] += sum over row r's entries in the block of values[i] * x[(index[i] - first) * width + t], for rows
// begin..end-1, t < width. The block that begins with input 0 sets y and does not add to it.
using CompactKernel = void (*)(const Rows& rows, int64_t begin, int64_t end, const InputBlock& block,
                               const float* values, const float* x, float* y);

struct CompactBackend {
    CompactKernel kernel;
    int64_t width;  // tokens of a group, a multiple of 16
    const Packing* packing;
};

extern const CompactBackend kPortableCompact;
#if defined(__x86_64__)
extern const CompactBackend kAvx2Compact;  // the portable one, compiled for AVX2
extern const CompactBackend kAvx512Compact;
#endif

// y [tokens, rows.count] = x [tokens, rows.inputs] times the transposed rows, plus bias (may be null), row-major.
// `values` are in the order of the rows' entries. Same bits for any number of threads. Throws std::bad_alloc.
template <class T>
void spmm_compact(const CompactBackend& backend, const Rows& rows, const T* x, int64_t tokens, const float* values,
                  const float* bias, T* y, int threads, Scratch& scratch);

}  // namespace spdf
