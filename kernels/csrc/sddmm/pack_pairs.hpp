// Row-major bf16 to panels of bf16 for products in pairs of tokens.
#pragma once

#include "pack/pack.hpp"

namespace spdf::sddmm {

#if defined(__x86_64__)
// Chunk f * stride .. + 63 (bytes) of the panel holds feature f at 32 tokens, token t beside token t + 16: any order does
// that both operands share. tokens 1 .. 32, the rest is zero; stride in floats, row_length in elements.
void pack_pairs_avx512(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* panel, int64_t stride);
#endif

}  // namespace spdf::sddmm
