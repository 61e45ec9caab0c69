// The C interface of the kernels, called through ctypes by the Python package. Row-major tensors, no torch.
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define SPDF_EXPORT __declspec(dllexport)
#else
#define SPDF_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum spdf_backend { SPDF_PORTABLE = 0, SPDF_AVX512 = 1, SPDF_JIT = 2, SPDF_JIT_AVX2 = 3 };
enum spdf_status { SPDF_OK = 0, SPDF_NO_MEMORY = 1, SPDF_NO_CODE = 2 };

typedef struct spdf_pattern spdf_pattern;

// Null if this machine can run the backend, else the reason in English.
SPDF_EXPORT const char* spdf_backend_missing(int backend);

// Whether the environment variable SPDF_KERNELS_BACKEND names a back end.
SPDF_EXPORT int spdf_backend_forced(void);

// Whether the CPU has instructions that multiply bf16.
SPDF_EXPORT int spdf_cpu_multiplies_bf16(void);

// Version of this interface. It changes with each change of a function, an argument or a back end's number, so that
// Python refuses a library of another version.
SPDF_EXPORT int spdf_abi_version(void);

// Whether the CPU is Intel's.
SPDF_EXPORT int spdf_cpu_is_intel(void);

// Structure of a weight [out, in] from its mask, packed row-major, first entry in the highest bit; nnz bits are set.
// Null if memory is exhausted. The bits are not kept.
SPDF_EXPORT spdf_pattern* spdf_pattern_new(const uint8_t* bits, int64_t out, int64_t in, int64_t nnz);
SPDF_EXPORT void spdf_pattern_free(spdf_pattern* pattern);

// y [tokens, out] = x [tokens, in] W^T + bias, or with `transposed` y [tokens, in] = x [tokens, out] W, over kept
// entries only. values [nnz] row-major, bias [out features] or null. With `bf16` all tensors are bfloat16, summed in
// float32; else float32. The first call of a direction prepares it. The bits do not depend on `threads`.
SPDF_EXPORT int spdf_spmm(spdf_pattern* pattern, int backend, int transposed, int bf16, const void* x, int64_t tokens,
                          const void* values, const void* bias, void* y, int threads);

// The same product on packed operands by generated code, float32, without bias: y [tiles][out | 1][16] =
// x [tiles][in | 1][16] W^T (transposed: in and out are exchanged). A tile holds 16 adjacent tokens per feature.
// SPDF_NO_CODE if there is no code: the machine cannot run it, the budget is used up, or the weight has no entries.
SPDF_EXPORT int spdf_spmm_packed(spdf_pattern* pattern, int backend, int transposed, const float* x, int64_t tiles,
                                 const float* values, float* y, int threads);

// values [nnz] = dy^T x at the kept entries, for dy [tokens, out] and x [tokens, in]: the gradient of a weight's
// values.
SPDF_EXPORT int spdf_grad_values(spdf_pattern* pattern, int backend, int bf16, const void* dy, const void* x,
                                 int64_t tokens, void* values, int threads);

// Prepares a direction before its first product. Returns the backend of its products: SPDF_JIT falls back to
// SPDF_AVX512, and SPDF_JIT_AVX2 to SPDF_PORTABLE, if the code budget is used up. -1 if memory is exhausted.
SPDF_EXPORT int spdf_prepare(spdf_pattern* pattern, int backend, int transposed, int bf16, int threads);

// Prepares the gradient of the values before its first product. SPDF_OK or SPDF_NO_MEMORY.
SPDF_EXPORT int spdf_prepare_grad_values(spdf_pattern* pattern);

// Bytes that a pattern holds at present.
SPDF_EXPORT int64_t spdf_index_bytes(const spdf_pattern* pattern);
SPDF_EXPORT int64_t spdf_code_bytes(const spdf_pattern* pattern);

// The limit of generated code of all patterns in this process, in bytes; and the bytes in use.
SPDF_EXPORT void spdf_set_code_budget(int64_t bytes);
SPDF_EXPORT int64_t spdf_code_bytes_in_use(void);

#ifdef __cplusplus
}
#endif
