#include "sddmm/schedule.hpp"

#include <algorithm>
#include <new>

namespace spdf::sddmm {
namespace {

constexpr int64_t kRowsPerBlock = 384;  // at most

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Column>
void fill(spdf_sddmm& s, const Column* col) {
    std::vector<int64_t> cursor(s.rows_per_block), first(s.rows_per_block);
    std::vector<std::vector<uint16_t>> by_count(s.columns_per_block + 1);
    s.columns.reserve(s.nnz());
    s.blocks.reserve(s.row_blocks * s.column_blocks + 1);
    for (int64_t rb = 0; rb < s.row_blocks; ++rb) {
        const int64_t row0 = rb * s.rows_per_block;
        const int64_t rows = std::min(s.rows_per_block, s.out - row0);
        std::copy_n(&s.row_start[row0], rows, cursor.begin());
        for (int64_t cb = 0; cb < s.column_blocks; ++cb) {
            const int64_t col0 = cb * s.columns_per_block;
            for (int64_t r = 0; r < rows; ++r) {
                int64_t e = first[r] = cursor[r];
                while (e < s.row_start[row0 + r + 1] && int64_t(col[e]) < col0 + s.columns_per_block) ++e;
                cursor[r] = e;
                by_count[e - first[r]].push_back(uint16_t(r));
            }
            Block block{uint32_t(s.buckets.size()), 0, s.rows.size(), s.columns.size()};
            for (int count = s.columns_per_block; count > 0; --count) {
                if (by_count[count].empty()) continue;
                s.buckets.push_back({uint16_t(by_count[count].size()), uint8_t(count)});
                ++block.buckets;
                for (uint16_t r : by_count[count]) {
                    s.rows.push_back(r);
                    for (int i = 0; i < count; ++i) s.columns.push_back(uint8_t(col[first[r] + i] - col0));
                }
            }
            for (auto& rows_of_count : by_count) rows_of_count.clear();
            s.blocks.push_back(block);
        }
    }
    s.blocks.push_back({uint32_t(s.buckets.size()), 0, s.rows.size(), s.columns.size()});
    s.rows.shrink_to_fit();
    s.buckets.shrink_to_fit();
}

template <class T>
int64_t bytes_of(const std::vector<T>& v) {
    return int64_t(v.capacity() * sizeof(T));
}

}  // namespace
}  // namespace spdf::sddmm

extern "C" spdf_sddmm* spdf_sddmm_prepare(int64_t out, int64_t in, const int64_t* row_start, const uint16_t* col16,
                                          const uint32_t* col32) {
    using namespace spdf::sddmm;
    try {
        auto* s = new spdf_sddmm;
        try {
            s->out = out;
            s->in = in;
            s->row_start.assign(row_start, row_start + out + 1);
            s->row_blocks = std::max<int64_t>(1, divide_up(out, kRowsPerBlock));
            s->rows_per_block = std::max<int64_t>(1, divide_up(out, s->row_blocks));
            s->row_blocks = divide_up(out, s->rows_per_block);
            const bool sparse = s->nnz() < static_cast<int64_t>(kSparseDensity * static_cast<double>(out * in));
            s->columns_per_block = sparse ? kColumnsPerSparseBlock : kColumnsPerBlock;
            s->column_blocks = divide_up(in, s->columns_per_block);
            if (col32 != nullptr) {
                fill(*s, col32);
            } else {
                fill(*s, col16);
            }
        } catch (...) {
            delete s;
            throw;
        }
        return s;
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

extern "C" int64_t spdf_sddmm_bytes(const spdf_sddmm* s) {
    using namespace spdf::sddmm;
    return int64_t(sizeof(*s)) + bytes_of(s->row_start) + bytes_of(s->blocks) + bytes_of(s->buckets) +
           bytes_of(s->rows) + bytes_of(s->columns);
}

extern "C" void spdf_sddmm_free(spdf_sddmm* s) { delete s; }
