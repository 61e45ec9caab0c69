// Pairs of inputs for the dot products of bf16 in generated code: which go together, and packing them.
#pragma once

#include <cstdint>

#include "pack/pack.hpp"

namespace spdf::jit {

// One dot product serves a row that keeps both inputs of a pair as well as one that keeps either, so inputs of the same
// rows belong together. Input 2p goes with input 2 partner[p] + 1: a permutation of 0..pairs-1, chosen so that few rows
// keep only one of the two. rows[input], input < 2 pairs: which rows of a block keep it, one bit a row.
void match_pairs(const uint32_t* rows, int64_t pairs, uint16_t* partner);

// Packs up to 16 tokens of x [tokens, row_length], features 0..features-1, into tile[pair][16 tokens][2 features]; lanes
// past the last token and the missing half of a last pair are zero. False when a value is not finite.
bool pack_pairs(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* tile);

}  // namespace spdf::jit
