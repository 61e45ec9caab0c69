// The product: packs both operands, shares blocks of the weight out to threads, runs their products.
#include "sddmm/sddmm.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <new>
#include <vector>

#include "cpu.hpp"
#include "pack/pack.hpp"
#include "sddmm/pack_pairs.hpp"
#include "sddmm/products.hpp"
#include "sddmm/schedule.hpp"
#include "spmm/scratch.hpp"

namespace spdf::sddmm {

namespace {

// Most packed x of a pass, of which two are in memory; more tokens go in several passes.
constexpr int64_t kPackedFloats = int64_t{8} << 20;
// Sums of a task, which come by again for each run of tokens: most of them then are still in the second-level cache.
constexpr int64_t kTaskSums = int64_t{200} << 10;
constexpr int64_t kMostTaskColumns = 3072;
// Each pass goes through all sums; so it packs this many floats a sum, and no more, for these should stay in cache.
constexpr int64_t kPackedFloatsOfSum = 8;
// Features that are packed at a time: small enough that threads share a pass evenly.
constexpr int64_t kPackedFeatures = 256;

template <class T>
struct Path {
    const Products& products;
    // Chunk of feature f at panel + f * stride (floats), from `tokens` rows of x; tokens past the end are zero.
    void (*pack)(const T* x, int64_t row_length, int tokens, int64_t features, float* panel, int64_t stride);
    int tokens_per_chunk;
};

// A run of tokens, packed into one panel of each operand.
struct Run {
    int64_t first;
    int64_t tokens;
    int vectors;
    BlockProducts products;
};

template <class T>
std::vector<Run> cut(const Path<T>& path, int64_t tokens) {
    std::vector<Run> runs;
    int64_t first = 0;
    for (int i = 0; i < 4; ++i) {
        const int64_t length = int64_t{kVectorCounts[i]} * path.tokens_per_chunk;
        // The shortest run takes what is left, padded with zeros.
        while (tokens - first >= length || (kVectorCounts[i] == 1 && first < tokens)) {
            runs.push_back({first, std::min(length, tokens - first), kVectorCounts[i], path.products.by_vectors[i]});
            first += length;
        }
    }
    return runs;
}

template <class T>
void pack_panel(const Path<T>& path, const Run& run, const T* source, int64_t ld, int64_t features, float* panel) {
    for (int v = 0; v < run.vectors; ++v) {
        const int64_t done = int64_t{v} * path.tokens_per_chunk;
        const int tokens = static_cast<int>(std::clamp<int64_t>(run.tokens - done, 0, path.tokens_per_chunk));
        path.pack(source + (run.first + done) * ld, ld, tokens, features, panel + v * kChunkFloats,
                  int64_t{run.vectors} * kChunkFloats);
    }
}

// Column blocks of a task: as many as its sums allow, and few enough that every thread has a task.
int64_t task_column_blocks(const spdf_sddmm& s, int threads) {
    const int64_t sums = std::max<int64_t>(1, s.nnz() / (s.row_blocks * s.column_blocks));
    const int64_t most = std::clamp<int64_t>(kTaskSums / sums, 1, kMostTaskColumns / s.columns_per_block);
    const int64_t parts = std::max((s.column_blocks + most - 1) / most, (threads + s.row_blocks - 1) / s.row_blocks);
    return (s.column_blocks + parts - 1) / parts;
}

template <class T>
void multiply(const spdf_sddmm& s, const Path<T>& path, const T* dy, int64_t ldy, const T* x, int64_t ldx,
              int64_t tokens, T* values, int threads) {
    thread_local Scratch scratch;
    constexpr bool kNarrow = sizeof(T) != sizeof(float);  // sums need a place of their own
    if (s.nnz() == 0) return;
    const std::vector<Run> runs = cut(path, tokens);
    const int64_t run_count = static_cast<int64_t>(runs.size());
    const int64_t x_floats = s.in * kVectorCounts[0] * kChunkFloats;
    const int64_t y_floats = s.rows_per_block * kVectorCounts[0] * kChunkFloats;
    const int64_t worth = kPackedFloatsOfSum * s.nnz() / ((s.in + s.out) * kVectorCounts[0] * kChunkFloats);
    const int64_t most_at_once = std::max<int64_t>(1, std::min(worth, kPackedFloats / x_floats));
    const int64_t passes = std::max<int64_t>(1, (run_count + most_at_once - 1) / most_at_once);
    const int64_t at_once = (run_count + passes - 1) / passes;  // as even as can be
    const int64_t pass_floats = x_floats * at_once;
    const int64_t buffers = std::min<int64_t>(passes, 2);  // of packed x, filled in turn
    float* const x_panels = scratch.floats(pass_floats * buffers + y_floats * threads + (kNarrow ? s.nnz() : 0));
    float* const y_panels = x_panels + pass_floats * buffers;
    float* sums = y_panels + y_floats * threads;
    if constexpr (!kNarrow) sums = values;
    const int64_t task_blocks = task_column_blocks(s, threads);
    const int64_t column_groups = (s.column_blocks + task_blocks - 1) / task_blocks;
    const int64_t parts = (s.in + kPackedFeatures - 1) / kPackedFeatures;
    const auto panels_of = [&](int64_t pass) { return x_panels + pass % buffers * pass_floats; };
    const auto end_of = [&](int64_t pass) { return std::min((pass + 1) * at_once, run_count); };

#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const int64_t me = omp_get_thread_num();
#else
        const int64_t me = 0;
#endif
        // Packed where it is used: it stays in this thread's cache, and memory holds packed x alone.
        float* const y_panel = y_panels + me * y_floats;
#pragma omp for schedule(static) nowait
        for (int64_t e = 0; e < s.nnz(); ++e) sums[e] = 0.0f;
        // Whoever is done with the products of a pass packs x for the next one: threads meet once a pass.
        for (int64_t pass = -1; pass < passes; ++pass) {
            const int64_t tasks = pass < 0 ? 0 : s.row_blocks * column_groups;
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t task = 0; task < tasks; ++task) {
                const int64_t rb = task / column_groups;
                const int64_t first = task % column_groups * task_blocks;
                const int64_t last = std::min(first + task_blocks, s.column_blocks);
                const int64_t row0 = rb * s.rows_per_block;
                const int64_t rows = std::min(s.rows_per_block, s.out - row0);
                for (int64_t i = pass * at_once; i < end_of(pass); ++i) {
                    const Run& run = runs[i];
                    const float* x_panel = panels_of(pass) + (i - pass * at_once) * x_floats;
                    pack_panel(path, run, dy + row0, ldy, rows, y_panel);
                    for (int64_t cb = first; cb < last; ++cb) {
                        run.products(s.block(rb, cb), y_panel,
                                     x_panel + cb * s.columns_per_block * run.vectors * kChunkFloats,
                                     sums + s.row_start[row0]);
                    }
                }
            }
            const int64_t next = (pass + 1) * at_once;
            const int64_t packings = pass + 1 < passes ? (end_of(pass + 1) - next) * parts : 0;
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < packings; ++i) {
                const Run& run = runs[next + i / parts];
                const int64_t first = i % parts * kPackedFeatures;
                pack_panel(path, run, x + first, ldx, std::min(kPackedFeatures, s.in - first),
                           panels_of(pass + 1) + i / parts * x_floats + first * run.vectors * kChunkFloats);
            }
        }
        if constexpr (kNarrow) {
#pragma omp for schedule(static)
            for (int64_t e = 0; e < s.nnz(); ++e) values[e] = to_bf16(sums[e]);
        }
    }
}

template <class T>
int status_of(const spdf_sddmm* prepared, const Path<T>& path, const T* dy, int64_t ldy, const T* x, int64_t ldx,
              int64_t tokens, T* values, int threads) {
    try {
        multiply(*prepared, path, dy, ldy, x, ldx, tokens, values, threads);
        return SPDF_SDDMM_OK;
    } catch (const std::bad_alloc&) {
        return SPDF_SDDMM_NO_MEMORY;
    }
}

const Products& portable_products() {
#if defined(__x86_64__)
    if (has_avx2()) return kAvx2Products;
#endif
    return kPortableProducts;
}

Path<float> path_f32(int isa) {
#if defined(__x86_64__)
    if (isa >= SPDF_SDDMM_AVX512) return {kAvx512Products, kAvx512Packing.pack_f32, 16};
#endif
    (void)isa;
    return {portable_products(), kPortablePacking.pack_f32, 16};
}

Path<Bf16> path_bf16(int isa) {
#if defined(__x86_64__)
    if (isa >= SPDF_SDDMM_AVX512_BF16) return {kAvx512Bf16Products, pack_pairs_avx512, 32};
    if (isa >= SPDF_SDDMM_AVX512) return {kAvx512Products, kAvx512Packing.pack_bf16, 16};
#endif
    (void)isa;
    return {portable_products(), kPortablePacking.pack_bf16, 16};
}

}  // namespace

}  // namespace spdf::sddmm

extern "C" {

int spdf_sddmm_best_isa(void) {
    if (spdf::has_avx512_bf16()) return SPDF_SDDMM_AVX512_BF16;
    return spdf::has_avx512() ? SPDF_SDDMM_AVX512 : SPDF_SDDMM_PORTABLE;
}

int spdf_sddmm_f32(const spdf_sddmm* prepared, const float* dy, int64_t ldy, const float* x, int64_t ldx,
                   int64_t tokens, float* values, int threads, int isa) {
    return spdf::sddmm::status_of(prepared, spdf::sddmm::path_f32(isa), dy, ldy, x, ldx, tokens, values, threads);
}

int spdf_sddmm_bf16(const spdf_sddmm* prepared, const uint16_t* dy, int64_t ldy, const uint16_t* x, int64_t ldx,
                    int64_t tokens, uint16_t* values, int threads, int isa) {
    static_assert(sizeof(spdf::Bf16) == sizeof(uint16_t));
    return spdf::sddmm::status_of(prepared, spdf::sddmm::path_bf16(isa), reinterpret_cast<const spdf::Bf16*>(dy), ldy,
                                  reinterpret_cast<const spdf::Bf16*>(x), ldx, tokens,
                                  reinterpret_cast<spdf::Bf16*>(values), threads);
}

}  // extern "C"
