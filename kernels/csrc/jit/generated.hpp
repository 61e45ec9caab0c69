// SpMM with the mask compiled to machine code: no indices, no branches, one multiply-add per kept entry and vector.
//
// The rows of a direction are divided into blocks of at most 31 (AVX2: 30), its inputs into blocks of at most
// kMaxBlockInputs inputs or kMaxBlockPairs pairs. Each (row block, input block) is straight-line code (block.hpp).
// Values are data in the order of use, so training does not change the code.
#pragma once

#include <cstdint>
#include <vector>

#include "jit/code_memory.hpp"
#include "pack/pack.hpp"
#include "pattern/pattern.hpp"
#include "spmm/scratch.hpp"

namespace spdf::jit {

// The kinds of code: single inputs for AVX-512, pairs of bf16 inputs for AVX-512, single inputs for AVX2.
//
// Pairs: two inputs share a vector of x, and one dot product of pairs multiplies both. x is packed in pairs of
// neighbours, an even and an odd feature. A block combines the even half of one pair with the odd half of another,
// chosen so that few rows keep only one of the two (match_pairs). Such a row has a zero beside its value, so x must be
// finite; spmm_generated reports if it is not.
enum class Kind { avx512, avx512_pairs, avx2 };

struct Generated {
    bool transposed = false;
    bool pairs = false;
    bool avx2 = false;
    int64_t rows = 0;      // output features
    int64_t features = 0;  // input features
    int64_t inputs = 0;    // vectors of x per tile: input features, or pairs of them
    int64_t entries = 0;   // multiply-adds per token: kept entries, or pairs with at least one
    int64_t block_rows = 0;
    int64_t row_blocks = 0;
    int64_t block_inputs = 0;
    int64_t input_blocks = 0;
    // Blocks in the order of use: input block major.
    std::vector<int64_t> entry;        // [input_blocks * row_blocks] offset of each block's code
    std::vector<int64_t> value_start;  // [input_blocks * row_blocks] first value of each block
    std::vector<uint8_t> counts;   // transposed, single: [inputs * row_blocks] kept entries of an input in a row block
    std::vector<uint16_t> starts;  // forward, single: [row_blocks * inputs] index of an input's first value in its block
    std::vector<uint32_t> kept;    // pairs: [row_blocks * features] rows of the block that keep a feature
    std::vector<uint16_t> partner;  // pairs: [row_blocks * inputs] index of the odd half, from the block's first input
    CodeMemory code;

    int64_t index_bytes() const {
        return static_cast<int64_t>(counts.size() + starts.size() * sizeof(uint16_t) +
                                    kept.size() * sizeof(uint32_t) + partner.size() * sizeof(uint16_t) +
                                    (entry.size() + value_start.size()) * sizeof(int64_t));
    }
};

// Builds the code of at most `limit` bytes. False if it does not fit or the host forbids it. Throws std::bad_alloc.
bool generate(const Pattern& pattern, bool transposed, Kind kind, int64_t limit, int threads, Generated& generated);

// Values of the pattern (row-major order) to the order of use: `entries` floats, or pairs of bf16 of the same size.
template <class T>
void order_values(const Pattern& pattern, const Generated& generated, const T* values, float* ordered, int threads);
void order_pairs(const Pattern& pattern, const Generated& generated, const Bf16* values, Bf16* ordered, int threads);

// Floats from one tile of a packed tensor to the next: an odd number of cache lines, so that tiles do not share cache
// sets.
inline int64_t tile_floats(int64_t features) { return (features | 1) * 16; }

// The product on packed operands: y [tiles][rows | 1][16] = x [tiles][features | 1][16] times the direction's weight. A
// tile holds 16 adjacent tokens per feature. For code of single inputs, not of pairs.
void spmm_tiles(const Generated& generated, const float* x, int64_t tiles, const float* ordered, float* y, int threads);

// y [tokens, rows] = x [tokens, features] times the direction's weight, plus bias (may be null), row-major; `ordered`
// from order_values or order_pairs. Same bits for any number of threads. Throws std::bad_alloc. False, with y
// undefined, if the code uses pairs and x is not finite.
template <class T>
bool spmm_generated(const Generated& generated, const Packing& packing, const T* x, int64_t tokens, const float* ordered,
                    const float* bias, T* y, int threads, Scratch& scratch);

}  // namespace spdf::jit
