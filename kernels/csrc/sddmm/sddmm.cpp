// The product: packs both operands, shares the row blocks out to threads, runs the blocks.
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

// Memory for packed x at a time; more tokens go in several passes.
constexpr int64_t kPackedFloats = int64_t{16} << 20;

template <class T>
struct Path {
    const Products& products;
    void (*pack)(const T* x, int64_t row_length, int tokens, int64_t features, float* panel, int64_t stride);
    int tokens_per_chunk;
};

// A run of tokens that is packed into one panel.
struct Run {
    int64_t first;
    int64_t tokens;
    int vectors;
    BlockProducts products;
};

template <class T>
void pack_panel(const Path<T>& path, const Run& run, const T* source, int64_t ld, int64_t feature, int64_t features,
                float* panel) {
    const int64_t stride = run.vectors * kChunkFloats;
    for (int v = 0; v < run.vectors; ++v) {
        const int64_t done = int64_t{v} * path.tokens_per_chunk;
        const int tokens = static_cast<int>(std::clamp<int64_t>(run.tokens - done, 0, path.tokens_per_chunk));
        path.pack(source + (run.first + done) * ld + feature, ld, tokens, features, panel + v * kChunkFloats, stride);
    }
}

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
void multiply(const spdf_sddmm& s, const Path<T>& path, const T* dy, int64_t ldy, const T* x, int64_t ldx,
              int64_t tokens, T* values, int threads) {
    thread_local Scratch scratch;
    constexpr bool kNarrow = sizeof(T) != sizeof(float);  // sums need a place of their own
    if (s.nnz() == 0) return;
    const std::vector<Run> runs = cut(path, tokens);
    const int64_t run_floats = kVectorCounts[0] * kChunkFloats;
    const int64_t at_once = std::clamp<int64_t>(kPackedFloats / (s.in * run_floats), 1,
                                                std::max<int64_t>(1, static_cast<int64_t>(runs.size())));
    const int64_t x_floats = at_once * s.in * run_floats;
    const int64_t y_floats = s.rows_per_block * run_floats;
    const int64_t sum_floats = kNarrow ? (s.nnz() + 15) / 16 * 16 : 0;
    float* const x_panels = scratch.floats(x_floats + y_floats * threads + sum_floats);
    float* const y_panels = x_panels + x_floats;
    float* sums = y_panels + y_floats * threads;
    if constexpr (!kNarrow) sums = values;
    std::vector<int64_t> positions(static_cast<size_t>(s.rows_per_block * threads));

#pragma omp parallel num_threads(threads)
    {
        int64_t me = 0;
#ifdef _OPENMP
        me = omp_get_thread_num();
#endif
        float* const y_panel = y_panels + me * y_floats;
        int64_t* const position = positions.data() + me * s.rows_per_block;
        const int64_t run_count = static_cast<int64_t>(runs.size());
        for (int64_t pass = 0; pass == 0 || pass < run_count; pass += at_once) {
            const int64_t pass_runs = std::min(at_once, run_count - pass);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < pass_runs; ++i) {
                pack_panel(path, runs[pass + i], x, ldx, 0, s.in, x_panels + i * s.in * run_floats);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t rb = 0; rb < s.row_blocks; ++rb) {
                const int64_t row0 = rb * s.rows_per_block;
                const int64_t rows = std::min(s.rows_per_block, s.out - row0);
                const int64_t begin = s.row_start[row0], end = s.row_start[row0 + rows];
                if (pass == 0) std::fill(sums + begin, sums + end, 0.0f);
                for (int64_t i = 0; i < pass_runs; ++i) {
                    const Run& run = runs[pass + i];
                    const int64_t stride = run.vectors * kChunkFloats;
                    const float* x_panel = x_panels + i * s.in * run_floats;
                    pack_panel(path, run, dy, ldy, row0, rows, y_panel);
                    std::copy_n(s.row_start.begin() + row0, rows, position);
                    for (int64_t cb = 0; cb < s.column_blocks; ++cb) {
                        run.products(s.block(rb, cb), y_panel, x_panel + cb * kColumnsPerBlock * stride, sums,
                                     position);
                    }
                }
                if constexpr (kNarrow) {
                    if (pass + pass_runs >= run_count) {
                        for (int64_t e = begin; e < end; ++e) values[e] = to_bf16(sums[e]);
                    }
                }
            }
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

Path<float> path_f32(int isa) {
#if defined(__x86_64__)
    if (isa >= SPDF_SDDMM_AVX512) return {kAvx512Products, kAvx512Packing.pack_f32, 16};
#endif
    (void)isa;
    return {kPortableProducts, kPortablePacking.pack_f32, 16};
}

Path<Bf16> path_bf16(int isa) {
#if defined(__x86_64__)
    if (isa >= SPDF_SDDMM_AVX512_BF16) return {kAvx512Bf16Products, pack_pairs_avx512, 32};
    if (isa >= SPDF_SDDMM_AVX512) return {kAvx512Products, kAvx512Packing.pack_bf16, 16};
#endif
    (void)isa;
    return {kPortableProducts, kPortablePacking.pack_bf16, 16};
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
