// The driver: divides the weight among the threads, packs the operands of each share, and runs its products.
#include "sddmm/sddmm.h"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "cpu.hpp"
#include "pack/pack.hpp"
#include "sddmm/pack_pairs.hpp"
#include "sddmm/products.hpp"
#include "sddmm/schedule.hpp"
#include "spmm/scratch.hpp"

namespace spdf::sddmm {

namespace {

// Limit of packed x of all shares together; more tokens take several passes.
constexpr int64_t kPackedFloats = int64_t{16} << 20;
// Sums of a task. Each run of tokens revisits them, so most of them must fit the second-level cache.
constexpr int64_t kTaskSums = int64_t{200} << 10;
constexpr int64_t kMostTaskColumns = 3072;
// Each pass reads and writes all sums, so it packs this many floats per sum. More would not stay in the cache.
constexpr int64_t kPackedFloatsOfSum = 2;
// Cost of packing a feature, in products of entries.
constexpr int64_t kEntriesOfFeature = 10;

template <class T>
struct Path {
    const Products& products;
    // Packs feature f to panel + f * stride (floats) from `tokens` rows of x; tokens past the end are zero.
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
        // The shortest run takes the remaining tokens, padded with zeros.
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

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks first .. last - 1 of the weight's rows or columns.
struct Blocks {
    int64_t first, last;
};

// The weight as a grid of rows x columns of shares, one per thread.
struct Grid {
    int64_t rows = 1, columns = 1;

    int64_t shares() const { return rows * columns; }
    static Blocks part(int64_t blocks, int64_t parts, int64_t i) { return {blocks * i / parts, blocks * (i + 1) / parts}; }
};

// The grid whose largest share takes the least time. A share packs its own operands: between cores without a common
// cache, moving a packed line takes longer than packing it again.
Grid grid_of(const spdf_sddmm& s, int threads) {
    const int64_t entries_of_block = s.nnz() / (s.row_blocks * s.column_blocks);
    Grid best;
    int64_t least = INT64_MAX;
    for (int64_t rows = 1; rows <= std::min<int64_t>(threads, s.row_blocks); ++rows) {
        const int64_t columns = std::min<int64_t>(threads / rows, s.column_blocks);
        const int64_t height = divide_up(s.row_blocks, rows), width = divide_up(s.column_blocks, columns);
        const int64_t features = height * s.rows_per_block + width * s.columns_per_block;
        const int64_t time = height * width * entries_of_block + features * kEntriesOfFeature;
        if (time < least) {
            least = time;
            best = {rows, columns};
        }
    }
    return best;
}

// Common to all shares.
struct Plan {
    std::vector<Run> runs;
    Grid grid;
    int64_t runs_at_once;  // runs per pass
    int64_t task_blocks;   // column blocks of a task
    int64_t x_floats;      // packed x of one run of a share
    int64_t y_floats;      // packed dy of one run of a row block
    int64_t share_floats;  // all packed operands of a share
    // With one pass the sums of a task are final when it ends, and each share holds those of one task. Else all sums
    // are held.
    bool one_pass;
    int64_t sum_floats;  // per share with one pass, else in total
};

int64_t most_sums_of_task(const spdf_sddmm& s, int64_t task_blocks) {
    int64_t most = 0;
    for (int64_t rb = 0; rb < s.row_blocks; ++rb) {
        for (int64_t cb = 0; cb < s.column_blocks; ++cb) {
            const int64_t end = std::min(cb + task_blocks, s.column_blocks);
            most = std::max(most, s.first_entry(rb, end) - s.first_entry(rb, cb));
        }
    }
    return divide_up(most, kChunkFloats) * kChunkFloats;
}

Plan plan_of(const spdf_sddmm& s, std::vector<Run> runs, int threads) {
    constexpr int64_t kFeatureFloats = kVectorCounts[0] * kChunkFloats;  // per feature in the longest run
    const Grid grid = grid_of(s, threads);
    const int64_t width = divide_up(s.column_blocks, grid.columns) * s.columns_per_block;
    const int64_t height = divide_up(s.row_blocks, grid.rows) * s.rows_per_block;
    const int64_t x_floats = width * kFeatureFloats, y_floats = s.rows_per_block * kFeatureFloats;
    const int64_t run_count = static_cast<int64_t>(runs.size());
    const int64_t worth = kPackedFloatsOfSum * s.nnz() / (grid.shares() * (width + height) * kFeatureFloats);
    const int64_t most = std::max<int64_t>(1, std::min(worth, kPackedFloats / (x_floats * grid.shares())));
    const int64_t passes = std::max<int64_t>(1, divide_up(run_count, most));
    const int64_t at_once = divide_up(run_count, passes);  // passes of equal size
    const int64_t block_sums = std::max<int64_t>(1, s.nnz() / (s.row_blocks * s.column_blocks));
    const int64_t task_blocks = std::clamp<int64_t>(kTaskSums / block_sums, 1, kMostTaskColumns / s.columns_per_block);
    const bool one_pass = passes == 1;
    const int64_t sum_floats = one_pass ? most_sums_of_task(s, task_blocks) : s.nnz();
    return {std::move(runs), grid, at_once, task_blocks, x_floats, y_floats, x_floats * at_once + y_floats, one_pass, sum_floats};
}

// One thread's share of the product. Sums are in the order of the schedule.
template <class T>
struct Share {
    const spdf_sddmm& s;
    const Path<T>& path;
    const Plan& plan;
    const T* dy;
    int64_t ldy;
    const T* x;
    int64_t ldx;
    T* values;
    Blocks rows, columns;
    float* x_panels;
    float* y_panel;
    float* sums;
    int64_t* next;  // [rows_per_block], index of the next value of each row

    int64_t first_row(int64_t rb) const { return rb * s.rows_per_block; }
    int64_t rows_of(int64_t rb) const { return std::min(s.rows_per_block, s.out - first_row(rb)); }

    void multiply() const {
        const int64_t runs = static_cast<int64_t>(plan.runs.size());
        if (plan.one_pass) {
            pack_x(0, runs);
            each_task([&](int64_t rb, Blocks of) {
                if (of.first == columns.first) find_places(rb);
                const int64_t entries = s.first_entry(rb, of.last) - s.first_entry(rb, of.first);
                std::fill_n(sums, entries, 0.0f);
                run_task(rb, of, 0, runs, sums);
                write(rb, of, sums);
            });
            return;
        }
        each_task([&](int64_t rb, Blocks of) {
            std::fill(sums + s.first_entry(rb, of.first), sums + s.first_entry(rb, of.last), 0.0f);
        });
        for (int64_t first = 0; first < runs; first += plan.runs_at_once) {
            const int64_t last = std::min(first + plan.runs_at_once, runs);
            pack_x(first, last);
            each_task([&](int64_t rb, Blocks of) { run_task(rb, of, first, last, sums + s.first_entry(rb, of.first)); });
        }
        each_task([&](int64_t rb, Blocks of) {
            if (of.first == columns.first) find_places(rb);
            write(rb, of, sums + s.first_entry(rb, of.first));
        });
    }

    template <class Task>
    void each_task(const Task& task) const {
        for (int64_t rb = rows.first; rb < rows.last; ++rb) {
            for (int64_t cb = columns.first; cb < columns.last; cb += plan.task_blocks) {
                task(rb, Blocks{cb, std::min(cb + plan.task_blocks, columns.last)});
            }
        }
    }

    void pack_x(int64_t first, int64_t last) const {
        const int64_t column = columns.first * s.columns_per_block;
        const int64_t width = std::min(columns.last * s.columns_per_block, s.in) - column;
        for (int64_t i = first; i < last; ++i) {
            pack_panel(path, plan.runs[i], x + column, ldx, width, x_panels + (i - first) * plan.x_floats);
        }
    }

    // Processes runs first .. last - 1, whose x is packed.
    void run_task(int64_t rb, Blocks of, int64_t first, int64_t last, float* task_sums) const {
        for (int64_t i = first; i < last; ++i) {
            const Run& run = plan.runs[i];
            const float* x_panel = x_panels + (i - first) * plan.x_floats;
            const int64_t block_floats = int64_t{run.vectors} * kChunkFloats * s.columns_per_block;
            pack_panel(path, run, dy + first_row(rb), ldy, rows_of(rb), y_panel);
            for (int64_t cb = of.first; cb < of.last; ++cb) {
                run.products(s.block(rb, cb), y_panel, x_panel + (cb - columns.first) * block_floats,
                             task_sums + s.first_entry(rb, cb) - s.first_entry(rb, of.first));
            }
        }
    }

    // Calls entries(row of the block, number of kept entries) for each row of each block, in the order of the sums.
    template <class Entries>
    void each_row(int64_t rb, Blocks of, const Entries& entries) const {
        for (int64_t cb = of.first; cb < of.last; ++cb) {
            const BlockView block = s.block(rb, cb);
            const uint16_t* row = block.rows;
            for (uint32_t b = 0; b < block.count; ++b) {
                for (int i = 0; i < block.buckets[b].rows; ++i, ++row) entries(*row, int64_t{block.buckets[b].entries});
            }
        }
    }

    // Before a row block's first task: skips the values of the columns of earlier shares.
    void find_places(int64_t rb) const {
        std::copy_n(&s.row_start[first_row(rb)], rows_of(rb), next);
        each_row(rb, {0, columns.first}, [&](uint16_t row, int64_t count) { next[row] += count; });
    }

    // Writes the values of a task in row-major order, rounded. Tasks of a row block must be written in order.
    void write(int64_t rb, Blocks of, const float* from) const {
        each_row(rb, of, [&](uint16_t row, int64_t count) {
            T* to = values + next[row];
            for (int64_t e = 0; e < count; ++e) store(to + e, from[e]);
            next[row] += count;
            from += count;
        });
    }
};

template <class T>
void multiply(const spdf_sddmm& s, const Path<T>& path, const T* dy, int64_t ldy, const T* x, int64_t ldx,
              int64_t tokens, T* values, int threads) {
    thread_local Scratch scratch;
    if (s.nnz() == 0) return;
    const Plan plan = plan_of(s, cut(path, tokens), threads);
    const Grid& grid = plan.grid;
    std::vector<int64_t> next(grid.shares() * s.rows_per_block);
    const int64_t panel_floats = plan.share_floats * grid.shares();
    float* const panels = scratch.floats(panel_floats + plan.sum_floats * (plan.one_pass ? grid.shares() : 1));
    float* const sums = panels + panel_floats;

#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t i = 0; i < grid.shares(); ++i) {
        float* const x_panels = panels + i * plan.share_floats;
        const Share<T> share{s, path, plan, dy, ldy, x, ldx, values,
                             Grid::part(s.row_blocks, grid.rows, i / grid.columns),
                             Grid::part(s.column_blocks, grid.columns, i % grid.columns), x_panels,
                             x_panels + plan.share_floats - plan.y_floats, sums + (plan.one_pass ? i * plan.sum_floats : 0),
                             &next[i * s.rows_per_block]};
        share.multiply();
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
    if (has_avx2()) return {kAvx2Products, kAvx2Packing.pack_f32, 16};
#endif
    (void)isa;
    return {kPortableProducts, kPortablePacking.pack_f32, 16};
}

Path<Bf16> path_bf16(int isa) {
#if defined(__x86_64__)
    if (isa >= SPDF_SDDMM_AVX512_BF16) return {kAvx512Bf16Products, pack_pairs_avx512, 32};
    if (isa >= SPDF_SDDMM_AVX512) return {kAvx512Products, kAvx512Packing.pack_bf16, 16};
    if (has_avx2()) return {kAvx2Products, kAvx2Packing.pack_bf16, 16};
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
