// Pairs of bf16 for the dot products of generated code: neighbouring inputs of x, and values merged to fit them.
#pragma once

#include <cstdint>

#include "pack/pack.hpp"

namespace spdf::jit {

// Packs up to 16 tokens of x [tokens, row_length], features 0..features-1, into tile[pair][16 tokens][2 features]; lanes
// past the last token and the missing half of a last pair are zero. False when a value is not finite.
bool pack_pairs(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* tile);

// For each b: the values of two inputs for one row block, even[popcount(kept_even[b])] and odd[...], go to to[b] as pairs,
// one for each row that keeps either, zero where a row keeps only one; even, odd and to[b] move on behind them.
void merge_segments(const Bf16* even, const Bf16* odd, const uint32_t* kept_even, const uint32_t* kept_odd,
                    int64_t blocks, Bf16** to);

}  // namespace spdf::jit
