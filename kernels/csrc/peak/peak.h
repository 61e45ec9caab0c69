// Highest rate of multiply-adds of this CPU on data in registers: the upper limit of every product.
#pragma once

#include "spdf_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Operations per second (two per multiply-add) on `threads` threads: the best of several runs that take about `seconds`
// together. With `bf16`, products of bf16 pairs; 0 if the CPU has no such instruction.
SPDF_EXPORT double spdf_fma_peak(int bf16, int threads, double seconds);

// The same in fp32 with one 64-byte load per multiply-add, from a buffer of `bytes` that each thread reads repeatedly.
// This is the limit of a product that loads one operand per multiply-add from the cache that holds the buffer. 0
// without AVX-512 or below 768 bytes.
SPDF_EXPORT double spdf_fma_fed(int64_t bytes, int threads, double seconds);

#ifdef __cplusplus
}
#endif
