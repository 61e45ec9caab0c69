// Sampled dense-dense product (SDDMM): gradient of the kept entries of a sparse weight W [out, in],
//   values[e] = sum over tokens t of dy[t, i_e] * x[t, j_e],   e over kept entries (i, j) in row-major order.
// Plain C interface without torch. csrc/sddmm/README.md explains the algorithm.
#pragma once

#include "spdf_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Instruction sets of a product. One that the CPU or the system does not support is never chosen.
enum spdf_sddmm_isa {
    SPDF_SDDMM_PORTABLE = 0,     // any CPU; uses AVX2 if available
    SPDF_SDDMM_AVX512 = 1,       // avx512 f, bw, dq, vl; bf16 inputs are widened while packing
    SPDF_SDDMM_AVX512_BF16 = 2,  // and avx512_bf16: bf16 products in pairs of tokens
};

// Status of a product.
enum spdf_sddmm_status {
    SPDF_SDDMM_OK = 0,
    SPDF_SDDMM_NO_MEMORY = 1,
};

// Static structure of one pattern, prepared once and then read-only, so threads may share it.
typedef struct spdf_sddmm spdf_sddmm;

// The widest set that this CPU and system support.
SPDF_EXPORT int spdf_sddmm_best_isa(void);

// Row i keeps columns col[row_start[i]] .. col[row_start[i + 1] - 1], ascending; row_start has out + 1 entries. Exactly
// one of col16 (in <= 65536) and col32 is given and the other is NULL; without entries both may be NULL. The arrays are
// not kept. NULL if memory is exhausted.
SPDF_EXPORT spdf_sddmm* spdf_sddmm_prepare(int64_t out, int64_t in, const int64_t* row_start,
                                           const uint16_t* col16, const uint32_t* col32);

// Bytes of the prepared structure.
SPDF_EXPORT int64_t spdf_sddmm_bytes(const spdf_sddmm* prepared);

// Frees it; NULL is accepted.
SPDF_EXPORT void spdf_sddmm_free(spdf_sddmm* prepared);

// values [nnz], all written. dy [tokens, out] and x [tokens, in] are row-major with leading strides ldy >= out and ldx
// >= in, in elements. bf16 is summed in fp32 and rounded once. `threads`: OpenMP threads; the bits do not depend on
// their number and are the same in every run. `isa`: a spdf_sddmm_isa that this CPU supports. Returns
// spdf_sddmm_status.
SPDF_EXPORT int spdf_sddmm_f32(const spdf_sddmm* prepared, const float* dy, int64_t ldy, const float* x, int64_t ldx,
                               int64_t tokens, float* values, int threads, int isa);
SPDF_EXPORT int spdf_sddmm_bf16(const spdf_sddmm* prepared, const uint16_t* dy, int64_t ldy, const uint16_t* x,
                                int64_t ldx, int64_t tokens, uint16_t* values, int threads, int isa);

#ifdef __cplusplus
}
#endif
