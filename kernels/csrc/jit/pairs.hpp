// Pairs of inputs for the dot products of bf16 in generated code: matching and packing.
#pragma once

#include <cstdint>

#include "pack/pack.hpp"

namespace spdf::jit {

// A row needs one dot product whether it keeps both inputs of a pair or one, so inputs of the same rows should be
// paired. Input 2p is paired with input 2 partner[p] + 1. `partner` is a permutation of 0..pairs-1, chosen so that few
// rows keep only one of the two. rows[input], input < 2 pairs: the rows of a block that keep the input, one bit per
// row.
void match_pairs(const uint32_t* rows, int64_t pairs, uint16_t* partner);

// Packs up to 16 tokens of x [tokens, row_length], features 0..features-1, into tile[pair][16 tokens][2 features];
// lanes past the last token and the missing half of a last pair are zero. False if a value is not finite.
bool pack_pairs(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* tile);

}  // namespace spdf::jit
