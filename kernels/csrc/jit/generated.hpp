// SpMM with the mask compiled to machine code: no indices, no branches, one multiply-add a kept entry.
//
// The rows of a direction are cut into blocks of at most 31, its inputs into blocks of at most kMaxInputBlock. One piece
// of straight-line code a (row block, input block): 31 accumulators of 16 tokens, one load of x an input, then one
// multiply-add with a broadcast value a kept entry. Values are data, in the order of use; training changes no code.
#pragma once

#include <cstdint>
#include <vector>

#include "jit/code_memory.hpp"
#include "pack/pack.hpp"
#include "pattern/pattern.hpp"
#include "spmm/scratch.hpp"

namespace spdf::jit {

struct Generated {
    bool transposed = false;
    int64_t rows = 0;    // output features
    int64_t inputs = 0;  // input features
    int64_t nnz = 0;
    int64_t block_rows = 0;
    int64_t row_blocks = 0;
    int64_t block_inputs = 0;
    int64_t input_blocks = 0;
    // Blocks in the order of use: input block major.
    std::vector<int64_t> entry;        // [input_blocks * row_blocks] offset of each block's code
    std::vector<int64_t> value_start;  // [input_blocks * row_blocks] first value of each block
    std::vector<uint8_t> counts;       // transposed only: [inputs * row_blocks] kept entries of an input in a row block
    std::vector<uint16_t> starts;      // forward only: [row_blocks * inputs] place of an input's first value in its block
    CodeMemory code;

    int64_t index_bytes() const {
        return static_cast<int64_t>(counts.size() + starts.size() * sizeof(uint16_t) +
                                    (entry.size() + value_start.size()) * sizeof(int64_t));
    }
};

// Builds the code. `limit`: bytes allowed. False when it would not fit or the host refuses; throws std::bad_alloc.
bool generate(const Pattern& pattern, bool transposed, int64_t limit, int threads, Generated& generated);

// Values of the pattern (row-major order) to the order of use.
template <class T>
void order_values(const Pattern& pattern, const Generated& generated, const T* values, float* ordered, int threads);

// y [tokens, rows] = x [tokens, inputs] times the direction's weight, plus bias (may be null), row-major; `ordered` from
// order_values. Same bits for any number of threads. Throws std::bad_alloc.
template <class T>
void spmm_generated(const Generated& generated, const Packing& packing, const T* x, int64_t tokens, const float* ordered,
                    const float* bias, T* y, int threads, Scratch& scratch);

}  // namespace spdf::jit
