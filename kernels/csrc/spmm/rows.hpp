// Sparse rows of one direction of a product: the weight itself (forward) or its transpose (dX).
#pragma once

#include <cstdint>
#include <vector>

#include "pattern/pattern.hpp"

namespace spdf {

struct Rows {
    int64_t count = 0;   // output features
    int64_t inputs = 0;  // input features
    const int64_t* start = nullptr;    // [count + 1]
    const uint16_t* index16 = nullptr;  // input feature of each entry, ascending in a row; or
    const uint32_t* index32 = nullptr;
};

// The transpose of a pattern, by rows of the transpose.
struct Transpose {
    std::vector<int64_t> start;    // [cols + 1]
    std::vector<uint16_t> index16;  // [nnz], row numbers, when rows <= 65536
    std::vector<uint32_t> index32;  // else
};

Transpose transpose_of(const Pattern& pattern);
Rows forward_rows(const Pattern& pattern);
Rows transposed_rows(const Pattern& pattern, const Transpose& transpose);

// ordered[i] = values in the order of the transpose's entries. T: float or Bf16.
template <class T>
void transpose_values(const Pattern& pattern, const Transpose& transpose, const T* values, float* ordered, int threads);

}  // namespace spdf
