// Row-major bf16 to panels of bf16 for products in pairs of tokens.
#pragma once

#include "pack/pack.hpp"

namespace spdf::sddmm {

#if defined(__x86_64__)
// The 64-byte chunk at panel + f * stride holds feature f at 32 tokens, token t beside token t + 16. Any order is
// correct if both operands share it. tokens: 1 to 32; the rest is zero. stride is in floats, row_length in elements.
void pack_pairs_avx512(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* panel, int64_t stride);
#endif

}  // namespace spdf::sddmm
