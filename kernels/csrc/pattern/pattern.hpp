// Static structure of one sparse weight [rows = out, cols = in]: compressed sparse rows, prepared once, read-only
// after.
#pragma once

#include <cstdint>
#include <vector>

namespace spdf {

// The caller holds the values, one per kept entry, in row-major order: entry i of row r has index row_start[r] + i.
// Column numbers take 16 bits when cols <= 65536 (col16), else 32 (col32); exactly one of the two is filled.
struct Pattern {
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t nnz = 0;
    std::vector<int64_t> row_start;  // [rows + 1]
    std::vector<uint16_t> col16;     // [nnz] or empty
    std::vector<uint32_t> col32;     // [nnz] or empty

    bool wide() const { return cols > 65536; }

    // Calls f(columns) with col16 or col32, the column of each entry.
    template <class F>
    auto with_columns(F&& f) const {
        return wide() ? f(col32.data()) : f(col16.data());
    }
};

// Structure from a mask packed row-major, first entry in the highest bit: ceil(rows * cols / 8) bytes, nnz bits set.
Pattern pattern_from_bits(const uint8_t* bits, int64_t rows, int64_t cols, int64_t nnz);

}  // namespace spdf
