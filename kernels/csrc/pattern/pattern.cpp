#include "pattern/pattern.hpp"

#include <algorithm>

namespace spdf {

namespace {

inline bool kept(const uint8_t* bits, int64_t i) { return (bits[i >> 3] >> (7 - (i & 7))) & 1; }

template <class Index>
void fill(const uint8_t* bits, Pattern& pattern, std::vector<Index>& columns) {
    columns.reserve(static_cast<size_t>(pattern.nnz));
    int64_t flat = 0;
    for (int64_t row = 0; row < pattern.rows; ++row) {
        pattern.row_start[static_cast<size_t>(row)] = static_cast<int64_t>(columns.size());
        for (int64_t col = 0; col < pattern.cols;) {
            if ((flat & 7) == 0 && bits[flat >> 3] == 0) {  // eight pruned entries at once
                const int64_t skip = std::min<int64_t>(8, pattern.cols - col);
                col += skip;
                flat += skip;
                continue;
            }
            if (kept(bits, flat)) columns.push_back(static_cast<Index>(col));
            ++col;
            ++flat;
        }
    }
    pattern.row_start[static_cast<size_t>(pattern.rows)] = static_cast<int64_t>(columns.size());
}

}  // namespace

Pattern pattern_from_bits(const uint8_t* bits, int64_t rows, int64_t cols, int64_t nnz) {
    Pattern pattern;
    pattern.rows = rows;
    pattern.cols = cols;
    pattern.nnz = nnz;
    pattern.row_start.resize(static_cast<size_t>(rows) + 1);
    if (pattern.wide()) {
        fill(bits, pattern, pattern.col32);
    } else {
        fill(bits, pattern, pattern.col16);
    }
    return pattern;
}

}  // namespace spdf
