// Pairs of values in the order in which generated code uses them: one pair per row that keeps either input, with zero
// for a pruned entry. Memory is allocated before a parallel region, because an exception that leaves it ends the
// process.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "jit/generated.hpp"

namespace spdf::jit {

namespace {

// Copies the rows of the block that keep each feature of a block of inputs; none for the missing half of a last pair.
void copy_rows(const Generated& g, int64_t row_block, int64_t first, int64_t inputs, uint32_t* rows) {
    const int64_t features = std::min(2 * inputs, g.features - 2 * first);
    std::copy_n(g.kept.data() + row_block * g.features + 2 * first, features, rows);
    std::fill(rows + features, rows + 2 * inputs, 0);
}

// The target of a feature's values: index `place`, counted in halves of pairs, after the pairs of earlier rows in
// `rows`.
struct Target {
    uint32_t rows;
    uint32_t place;
};

template <class Column>
void order_forward(const Pattern& pattern, const Column* columns, const Generated& g, const Bf16* values, Bf16* ordered,
                   int threads) {
    std::vector<Target> memory(static_cast<size_t>(2 * g.inputs * threads));
    std::vector<uint32_t> words(static_cast<size_t>(2 * g.block_inputs * threads));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        Target* targets = memory.data() + part * 2 * g.inputs;
        uint32_t* rows = words.data() + part * 2 * g.block_inputs;
        for (int64_t b = g.row_blocks * part / threads; b < g.row_blocks * (part + 1) / threads; ++b) {
            Bf16* to = ordered + 2 * g.value_start[b];
            for (int64_t k = 0; k < g.input_blocks; ++k) {
                const int64_t first = k * g.block_inputs, inputs = std::min(g.block_inputs, g.inputs - first);
                const int64_t start = 2 * (g.value_start[k * g.row_blocks + b] - g.value_start[b]);
                const uint16_t* partner = g.partner.data() + b * g.inputs + first;
                Target* target = targets + 2 * first;
                copy_rows(g, b, first, inputs, rows);
                int64_t place = start;
                for (int64_t p = 0; p < inputs; ++p) {
                    const int64_t low = 2 * p, high = 2 * static_cast<int64_t>(partner[p]) + 1;
                    const uint32_t either = rows[low] | rows[high];
                    target[low] = {either, static_cast<uint32_t>(place)};
                    target[high] = {either, static_cast<uint32_t>(place + 1)};
                    place += 2 * __builtin_popcount(either);
                }
                std::fill(to + start, to + place, Bf16{0});
            }
            const int64_t first_row = b * g.block_rows, last_row = std::min(first_row + g.block_rows, g.rows);
            for (int64_t r = first_row; r < last_row; ++r) {
                const uint32_t before = (1u << (r - first_row)) - 1;
                for (int64_t i = pattern.row_start[r]; i < pattern.row_start[r + 1]; ++i) {
                    const Target target = targets[columns[i]];
                    to[target.place + 2 * __builtin_popcount(target.rows & before)] = values[i];
                }
            }
        }
    }
}

// 16-bit values, one per set bit of `lanes`, spread to 32-bit lanes.
inline __m512i spread(const Bf16* from, __mmask16 lanes) {
    const uint32_t count = (1u << __builtin_popcount(lanes)) - 1;
    const __m256i values = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(count), from);
    return _mm512_maskz_expand_epi32(lanes, _mm512_cvtepu16_epi32(values));
}

// Merges the values of two inputs for one row block; returns the position after them.
inline Bf16* merge(const Bf16* low, const Bf16* high, uint32_t rows_low, uint32_t rows_high, Bf16* to) {
    for (int half = 0; half < 2; ++half) {  // 16 rows of the block at a time
        const __mmask16 lanes_low = static_cast<__mmask16>(rows_low >> (16 * half));
        const __mmask16 lanes_high = static_cast<__mmask16>(rows_high >> (16 * half));
        const __mmask16 either = lanes_low | lanes_high;
        const __m512i pairs = _mm512_or_si512(spread(low, lanes_low), _mm512_slli_epi32(spread(high, lanes_high), 16));
        const int count = __builtin_popcount(either);
        _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << count) - 1), _mm512_maskz_compress_epi32(either, pairs));
        low += __builtin_popcount(lanes_low);
        high += __builtin_popcount(lanes_high);
        to += 2 * count;
    }
    return to;
}

// Transposed: a row of the pattern is an input, and its values are in the order of the row blocks.
void order_transposed(const Pattern& pattern, const Generated& g, const Bf16* values, Bf16* ordered, int threads) {
    const int64_t features = 2 * g.block_inputs;
    std::vector<const Bf16*> pointers(static_cast<size_t>(features * threads));
    std::vector<uint32_t> words(static_cast<size_t>(features * threads));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        const Bf16** from = pointers.data() + part * features;
        uint32_t* rows = words.data() + part * features;
        const int64_t end = g.row_blocks * (part + 1) / threads;
        for (int64_t k = 0; k < g.input_blocks; ++k) {
            const int64_t first = k * g.block_inputs, inputs = std::min(g.block_inputs, g.inputs - first);
            for (int64_t f = 0; f < 2 * inputs; ++f) {
                from[f] = values + pattern.row_start[std::min(2 * first + f, g.features)];
            }
            for (int64_t b = 0; b < end; ++b) {
                copy_rows(g, b, first, inputs, rows);
                if (b >= g.row_blocks * part / threads) {
                    Bf16* to = ordered + 2 * g.value_start[k * g.row_blocks + b];
                    const uint16_t* partner = g.partner.data() + b * g.inputs + first;
                    for (int64_t p = 0; p < inputs; ++p) {
                        const int64_t low = 2 * p, high = 2 * static_cast<int64_t>(partner[p]) + 1;
                        to = merge(from[low], from[high], rows[low], rows[high], to);
                    }
                }
                for (int64_t f = 0; f < 2 * inputs; ++f) from[f] += __builtin_popcount(rows[f]);
            }
        }
    }
}

}  // namespace

void order_pairs(const Pattern& pattern, const Generated& g, const Bf16* values, Bf16* ordered, int threads) {
    if (g.transposed) {
        order_transposed(pattern, g, values, ordered, threads);
    } else {
        pattern.with_columns([&](auto columns) { order_forward(pattern, columns, g, values, ordered, threads); });
    }
}

}  // namespace spdf::jit

#endif
