// The position of packing a few lines ahead, for prefetches.
#pragma once

#include <cstdint>

namespace spdf {

// The element that is read `distance` elements after feature f: in the same rows, or in the following rows, `next_rows`
// elements away. Each row is a separate stream. There are more streams than the hardware prefetcher follows, so the
// loops prefetch. Reads are prefetched into L2: rows of many common lengths share so few sets of L1 that lines would
// evict each other before use.
template <class T>
inline T* ahead(T* rows, int64_t next_rows, int64_t features, int64_t f, int64_t distance) {
    return f + distance < features ? rows + f + distance : rows + next_rows + f + distance - features;
}

}  // namespace spdf
