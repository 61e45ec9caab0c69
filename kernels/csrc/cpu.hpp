// What this CPU and its operating system offer.
#pragma once

namespace spdf {

// AVX2 and FMA.
bool has_avx2();
// AVX-512 F, BW, DQ and VL with the system saving the registers.
bool has_avx512();
// Also bf16 dot products.
bool has_avx512_bf16();
// Whether some instruction multiplies bf16 and adds in float.
bool has_bf16_products();
bool is_intel();

}  // namespace spdf
