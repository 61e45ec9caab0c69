// Short copies from one stream to many: the values of one row, distributed to the row blocks of the transpose.
#pragma once

#include <cstdint>

#include "pack/pack.hpp"

namespace spdf::jit {

// For each b: copies the next counts[b] (0..31) values of `from` to to[b] and advances to[b].
void copy_segments(const float* from, const uint8_t* counts, int64_t blocks, float** to);
void copy_segments(const Bf16* from, const uint8_t* counts, int64_t blocks, float** to);

}  // namespace spdf::jit
