// Values from row-major order to the order in which generated code uses them. Memory is allocated before a parallel
// region, because an exception that leaves it ends the process.
#if defined(__x86_64__)

#include <algorithm>

#include "jit/generated.hpp"
#include "jit/segments.hpp"

namespace spdf::jit {

namespace {

// Forward: a block uses its values input by input, so each row block is transposed. `next` has the index of the next
// value of each input; each part has its own.
template <class T, class Column>
void order_forward(const Pattern& pattern, const Column* columns, const Generated& g, const T* values, float* ordered,
                   int threads) {
    std::vector<uint32_t> memory(static_cast<size_t>(g.inputs * threads));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        uint32_t* next = memory.data() + part * g.inputs;
        for (int64_t b = g.row_blocks * part / threads; b < g.row_blocks * (part + 1) / threads; ++b) {
            const int64_t first = pattern.row_start[b * g.block_rows];
            const int64_t last = pattern.row_start[std::min((b + 1) * g.block_rows, g.rows)];
            const uint16_t* starts = g.starts.data() + b * g.inputs;
            for (int64_t k = 0; k < g.input_blocks; ++k) {
                const uint32_t block = static_cast<uint32_t>(g.value_start[k * g.row_blocks + b] - g.value_start[b]);
                const int64_t end = std::min((k + 1) * g.block_inputs, g.inputs);
                for (int64_t c = k * g.block_inputs; c < end; ++c) next[c] = starts[c] + block;
            }
            float* to = ordered + g.value_start[b];
            for (int64_t i = first; i < last; ++i) to[next[columns[i]]++] = to_float(values[i]);
        }
    }
}

// For each b: copies the next counts[b] (0..31) values of `from` to to[b] and advances to[b]. AVX2 has no masks for
// this: a copy writes 16 or 32 values, and later rows overwrite the excess. Near the end of a block (end[b]) or of the
// values (`last`) it writes exactly counts[b].
template <class T>
void copy_segments_avx2(const T* from, const T* last, const uint8_t* counts, int64_t blocks, float** to, float* const* end) {
    constexpr int64_t kAtOnce = 16, kMost = 32;
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t count = counts[b];
        float* target = to[b];
        if (end[b] - target >= kMost && last - from >= kMost) {
            for (int64_t i = 0; i < kAtOnce; ++i) target[i] = to_float(from[i]);
            if (count > kAtOnce) {
                for (int64_t i = kAtOnce; i < kMost; ++i) target[i] = to_float(from[i]);
            }
        } else {
            for (int64_t i = 0; i < count; ++i) target[i] = to_float(from[i]);
        }
        from += count;
        to[b] += count;
    }
}

// Transposed: a block uses its values row by row of the pattern, and the entries of a row in a range of columns are
// adjacent. Short copies suffice.
template <class T>
void order_transposed(const Pattern& pattern, const Generated& g, const T* values, float* ordered, int threads) {
    std::vector<float*> to(static_cast<size_t>(g.row_blocks)), ends(static_cast<size_t>(g.row_blocks));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const int64_t begin = g.row_blocks * part / threads, end = g.row_blocks * (part + 1) / threads;
        for (int64_t k = 0; k < g.input_blocks; ++k) {
            for (int64_t b = begin; b < end; ++b) {
                const int64_t block = k * g.row_blocks + b;
                to[b] = ordered + g.value_start[block];
                ends[b] = ordered + (block + 1 < g.input_blocks * g.row_blocks ? g.value_start[block + 1] : g.entries);
            }
            const int64_t last = std::min((k + 1) * g.block_inputs, g.inputs);
            for (int64_t r = k * g.block_inputs; r < last; ++r) {
                const uint8_t* counts = g.counts.data() + r * g.row_blocks;
                const T* from = values + pattern.row_start[r];
                for (int64_t b = 0; b < begin; ++b) from += counts[b];
                if (g.avx2) {
                    copy_segments_avx2(from, values + pattern.nnz, counts + begin, end - begin, to.data() + begin,
                                       ends.data() + begin);
                } else {
                    copy_segments(from, counts + begin, end - begin, to.data() + begin);
                }
            }
        }
    }
}

}  // namespace

template <class T>
void order_values(const Pattern& pattern, const Generated& g, const T* values, float* ordered, int threads) {
    if (g.transposed) {
        order_transposed(pattern, g, values, ordered, threads);
    } else {
        pattern.with_columns([&](auto columns) { order_forward(pattern, columns, g, values, ordered, threads); });
    }
}

template void order_values(const Pattern&, const Generated&, const float*, float*, int);
template void order_values(const Pattern&, const Generated&, const Bf16*, float*, int);

}  // namespace spdf::jit

#endif
