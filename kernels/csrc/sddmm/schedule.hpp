// The order in which a product visits the kept entries, prepared once per pattern.
//
// The weight is divided into row blocks and column blocks. Packed x of a column block stays in L1. Inside a block, rows
// are sorted by falling number of entries, so that a kernel runs the same straight-line code for many successive rows
// and its branches are predicted. An entry takes one byte.
#pragma once

#include <cstdint>
#include <vector>

#include "sddmm/sddmm.h"

namespace spdf::sddmm {

constexpr int kColumnsPerBlock = 48;  // x 8 vectors of 64 bytes: 24 KiB of a 32 KiB L1
// With few entries per row and block, starting a row costs as much as its products. Wider blocks halve the number of
// starts, although a third of x is then read from L2.
constexpr int kColumnsPerSparseBlock = 96;
constexpr double kSparseDensity = 0.22;
constexpr int kLargestGroup = 8;      // entries of one row that a kernel sums at once

struct Bucket {
    uint16_t rows;     // rows in it
    uint8_t entries;   // kept entries of each of them, 1 .. kColumnsPerSparseBlock
};

// One row block x column block, as slices of the arrays in spdf_sddmm.
struct Block {
    uint32_t first_bucket;
    uint32_t buckets;
    uint64_t first_row;    // in `rows`
    uint64_t first_entry;  // in `columns`
};

// One block, resolved for a kernel.
struct BlockView {
    const Bucket* buckets;
    uint32_t count;
    const uint16_t* rows;     // within the row block
    const uint8_t* columns;   // within the column block
    int width;                // columns of a block
};

}  // namespace spdf::sddmm

struct spdf_sddmm {
    int64_t out = 0;
    int64_t in = 0;
    int64_t rows_per_block = 1;
    int columns_per_block = spdf::sddmm::kColumnsPerBlock;
    int64_t row_blocks = 0;
    int64_t column_blocks = 0;
    std::vector<int64_t> row_start;               // [out + 1]
    std::vector<spdf::sddmm::Block> blocks;       // [row_blocks * column_blocks + 1], the last one empty
    std::vector<spdf::sddmm::Bucket> buckets;
    std::vector<uint16_t> rows;
    std::vector<uint8_t> columns;                 // [nnz]

    int64_t nnz() const { return row_start.back(); }

    // Index of a block's first entry in `columns`; also defined for the block after the last.
    int64_t first_entry(int64_t row_block, int64_t column_block) const {
        return static_cast<int64_t>(blocks[row_block * column_blocks + column_block].first_entry);
    }

    spdf::sddmm::BlockView block(int64_t row_block, int64_t column_block) const {
        const spdf::sddmm::Block& b = blocks[row_block * column_blocks + column_block];
        return {buckets.data() + b.first_bucket, b.buckets, rows.data() + b.first_row,
                columns.data() + b.first_entry, columns_per_block};
    }
};
