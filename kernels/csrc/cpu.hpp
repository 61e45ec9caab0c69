// Instruction sets that this CPU and its operating system support.
#pragma once

namespace spdf {

// AVX2 and FMA.
bool has_avx2();
// AVX-512 F, BW, DQ and VL, with registers that the operating system saves.
bool has_avx512();
// The same, and AVX-512 bf16 dot products.
bool has_avx512_bf16();
// Whether the CPU has an instruction that multiplies bf16 and sums in float.
bool has_bf16_products();
bool is_intel();

}  // namespace spdf
