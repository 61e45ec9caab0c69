// Where packing will be a few lines from now, for prefetches.
#pragma once

#include <cstdint>

namespace spdf {

// The element that a walk over the first `features` of some rows reaches `distance` elements after feature f: the same rows
// further on, then the rows that follow, `next_rows` elements away. Each row is a stream of its own, more streams than the
// hardware follows, so the loops prefetch. Reads are prefetched into the second-level cache: rows of many common lengths
// share so few sets of the first level that lines would evict each other before use.
template <class T>
inline T* ahead(T* rows, int64_t next_rows, int64_t features, int64_t f, int64_t distance) {
    return f + distance < features ? rows + f + distance : rows + next_rows + f + distance - features;
}

}  // namespace spdf
