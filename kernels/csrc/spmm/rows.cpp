#include "spmm/rows.hpp"

#include <algorithm>

#include "pack/pack.hpp"

namespace spdf {

namespace {

template <class Column, class Row>
void scatter_rows(const Pattern& pattern, const Column* columns, const std::vector<int64_t>& start, std::vector<Row>& rows) {
    rows.resize(static_cast<size_t>(pattern.nnz));
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t r = 0; r < pattern.rows; ++r) {
        for (int64_t i = pattern.row_start[r]; i < pattern.row_start[r + 1]; ++i) {
            rows[next[columns[i]]++] = static_cast<Row>(r);
        }
    }
}

template <class Column>
void build(const Pattern& pattern, const Column* columns, Transpose& transpose) {
    transpose.start.assign(static_cast<size_t>(pattern.cols) + 1, 0);
    for (int64_t i = 0; i < pattern.nnz; ++i) ++transpose.start[static_cast<size_t>(columns[i]) + 1];
    for (int64_t c = 0; c < pattern.cols; ++c) transpose.start[c + 1] += transpose.start[c];
    if (pattern.rows > 65536) {
        scatter_rows(pattern, columns, transpose.start, transpose.index32);
    } else {
        scatter_rows(pattern, columns, transpose.start, transpose.index16);
    }
}

template <class T, class Column>
void reorder(const Pattern& pattern, const Column* columns, const Transpose& transpose, const T* values, float* ordered,
             int threads) {
    // Each thread owns a range of columns, so threads write to different places, and the result does not depend on
    // their number. Memory is allocated before the parallel region, because an exception that leaves it ends the
    // process.
    std::vector<int64_t> next(transpose.start.begin(), transpose.start.end() - 1);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t first = pattern.cols * part / threads;
        const int64_t last = pattern.cols * (part + 1) / threads;
        for (int64_t r = 0; r < pattern.rows; ++r) {
            const Column* end = columns + pattern.row_start[r + 1];
            const Column* at = columns + pattern.row_start[r];
            if (first > 0) at = std::lower_bound(at, end, static_cast<Column>(first));
            for (; at != end && *at < last; ++at) ordered[next[*at]++] = to_float(values[at - columns]);
        }
    }
}

}  // namespace

Transpose transpose_of(const Pattern& pattern) {
    Transpose transpose;
    pattern.with_columns([&](auto columns) { build(pattern, columns, transpose); });
    return transpose;
}

Rows forward_rows(const Pattern& pattern) {
    return Rows{pattern.rows, pattern.cols, pattern.row_start.data(), pattern.wide() ? nullptr : pattern.col16.data(),
                pattern.wide() ? pattern.col32.data() : nullptr};
}

Rows transposed_rows(const Pattern& pattern, const Transpose& transpose) {
    const bool tall = pattern.rows > 65536;
    return Rows{pattern.cols, pattern.rows, transpose.start.data(), tall ? nullptr : transpose.index16.data(),
                tall ? transpose.index32.data() : nullptr};
}

template <class T>
void transpose_values(const Pattern& pattern, const Transpose& transpose, const T* values, float* ordered, int threads) {
    pattern.with_columns([&](auto columns) { reorder(pattern, columns, transpose, values, ordered, threads); });
}

template void transpose_values(const Pattern&, const Transpose&, const float*, float*, int);
template void transpose_values(const Pattern&, const Transpose&, const Bf16*, float*, int);

}  // namespace spdf
