// Highest rate of multiply-adds that this CPU reaches on data in registers: the roof of every product.
#pragma once

#include "spdf_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Operations (two a multiply-add) per second over `threads` threads: best of several runs that take about `seconds`
// together. With `bf16` products of bf16 pairs; 0 where the CPU has none.
SPDF_EXPORT double spdf_fma_peak(int bf16, int threads, double seconds);

// The same for fp32 where one factor of each multiply-add is a load of 64 bytes, from `bytes` of memory that each thread
// goes through again and again: what a product reaches that loads an operand each time, from the cache that holds so much.
// 0 without AVX-512 or below 768 bytes.
SPDF_EXPORT double spdf_fma_fed(int64_t bytes, int threads, double seconds);

#ifdef __cplusplus
}
#endif
