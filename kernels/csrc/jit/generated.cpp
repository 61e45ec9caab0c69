#if defined(__x86_64__)

#include "jit/generated.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__linux__)
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>

#include "jit/block.hpp"
#include "jit/pairs.hpp"

namespace spdf::jit {

namespace {

constexpr int64_t kMaxBlockInputs = 768;  // a block's code and x fit L2
constexpr int64_t kMaxBlockPairs = 512;   // at 90% a block's code fits the first-level instruction cache
// Each pass of a block over one tile prefetches 1 / kPassesPerPrefetch of the next block's code into L2. Code from L3
// runs slower.
constexpr int64_t kPassesPerPrefetch = 6;
// Each group of tiles reads all code and values once from L3, which other cores share. The rows are therefore divided
// into parts of this many to twice as many bytes, and all groups process one part before the next.
constexpr int64_t kBytesOfPart = int64_t{4} << 20;
constexpr int64_t kBytesOfEntry = 8 + 4;  // code and value
constexpr int64_t kCodeBytesOfEntryAvx2 = 17;
// Each part packs x once more. This is the minimum of multiply-adds per packed element of x for a part.
constexpr int64_t kWorkOfPackedElement = 320;

// The rows of a row block that keep a feature, one bit per row: [row_blocks * features].
template <class Column>
std::vector<uint32_t> row_bits(const Pattern& pattern, const Column* columns, const Generated& g) {
    std::vector<uint32_t> words(static_cast<size_t>(g.row_blocks * g.features));
    for (int64_t r = 0; r < pattern.rows; ++r) {
        for (int64_t i = pattern.row_start[r]; i < pattern.row_start[r + 1]; ++i) {
            const int64_t row = g.transposed ? static_cast<int64_t>(columns[i]) : r;
            const int64_t feature = g.transposed ? r : static_cast<int64_t>(columns[i]);
            words[row / g.block_rows * g.features + feature] |= 1u << (row % g.block_rows);
        }
    }
    return words;
}

// Chooses the pairs of each block. Returns the rows that keep either input of a pair: [row_blocks * inputs].
std::vector<uint32_t> match(Generated& g, int threads) {
    std::vector<uint32_t> words(static_cast<size_t>(g.row_blocks * g.inputs));
    std::vector<uint32_t> memory(static_cast<size_t>(2 * g.inputs * threads));
    g.partner.resize(words.size());
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        uint32_t* rows = memory.data() + part * 2 * g.inputs;  // of features and the missing half of a last pair
        for (int64_t b = g.row_blocks * part / threads; b < g.row_blocks * (part + 1) / threads; ++b) {
            std::copy_n(g.kept.data() + b * g.features, g.features, rows);
            for (int64_t first = 0; first < g.inputs; first += g.block_inputs) {
                const int64_t count = std::min(g.block_inputs, g.inputs - first);
                uint16_t* partner = g.partner.data() + b * g.inputs + first;
                match_pairs(rows + 2 * first, count, partner);
                for (int64_t p = 0; p < count; ++p) {
                    words[b * g.inputs + first + p] = rows[2 * (first + p)] | rows[2 * (first + partner[p]) + 1];
                }
            }
        }
    }
    return words;
}

// Kept entries of each input in each row block: [inputs * row_blocks].
std::vector<uint8_t> entries_of_inputs(const std::vector<uint32_t>& words, const Generated& g) {
    std::vector<uint8_t> counts(words.size());
    for (int64_t b = 0; b < g.row_blocks; ++b) {
        for (int64_t i = 0; i < g.inputs; ++i) {
            counts[i * g.row_blocks + b] = static_cast<uint8_t>(__builtin_popcount(words[b * g.inputs + i]));
        }
    }
    return counts;
}

// Index of each input's first value in its block: [row_blocks * inputs].
std::vector<uint16_t> starts_of_inputs(const std::vector<uint32_t>& words, const Generated& g) {
    static_assert(kMostRowsAvx512 * kMaxBlockInputs <= 65536, "places take 16 bits");
    std::vector<uint16_t> starts(words.size());
    for (int64_t b = 0; b < g.row_blocks; ++b) {
        int start = 0;
        for (int64_t i = 0; i < g.inputs; ++i) {
            if (i % g.block_inputs == 0) start = 0;
            starts[b * g.inputs + i] = static_cast<uint16_t>(start);
            start += __builtin_popcount(words[b * g.inputs + i]);
        }
    }
    return starts;
}

// Inputs of a block for AVX2, a multiple of 16: its code fits a first-level instruction cache of 32 KiB, and its x half
// of a first-level data cache of the same size.
int64_t inputs_of_avx2_block(const Generated& g, double density) {
    constexpr double kCodeBytes = 20 << 10, kBytesOfInput = 50;  // kBytesOfInput: loads of x in five groups of rows
    constexpr int64_t kMostInputs = 256;
    const double bytes = kMostRowsAvx2 * density * kCodeBytesOfEntryAvx2 + kBytesOfInput;
    const int64_t most = std::clamp<int64_t>(static_cast<int64_t>(kCodeBytes / bytes), 48, kMostInputs);
    const int64_t blocks = (g.inputs + most - 1) / most;
    return ((g.inputs + blocks - 1) / blocks + 15) / 16 * 16;
}

// Tiles of a group, which shares one pass through the code: the largest number whose inputs fit L2 beside the code.
// With few entries per input, x gets a smaller share of the cache. Pairs halve x, but not the sums and the code, so
// they take as many tiles as a full block of single inputs. AVX2: a block's x is small, and its code is loaded into L1
// once per group. More code per input needs more tiles to amortize the load, but the sums of many tiles do not fit L2.
int64_t tiles_of_group(const Generated& g) {
    if (g.avx2) {
        return std::clamp<int64_t>(128 * g.entries / (g.rows * g.inputs), 16, 64);
    }
    int64_t cache = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    if (cache <= 0) cache = int64_t{1} << 20;
    const bool few_entries = g.entries * 6 < g.rows * g.inputs;
    const int64_t room = g.pairs || few_entries ? cache * 3 / 8 : cache * 9 / 16;
    return std::clamp<int64_t>(room / ((g.pairs ? kMaxBlockInputs : g.block_inputs) * 64), 4, 24);
}

}  // namespace

bool generate(const Pattern& pattern, bool transposed, Kind kind, int64_t limit, int threads, Generated& g) {
    const bool pairs = kind == Kind::avx512_pairs, avx2 = kind == Kind::avx2;
    g.transposed = transposed;
    g.pairs = pairs;
    g.avx2 = avx2;
    g.rows = transposed ? pattern.cols : pattern.rows;
    g.features = transposed ? pattern.rows : pattern.cols;
    g.inputs = pairs ? (g.features + 1) / 2 : g.features;
    const int64_t most_rows = avx2 ? kMostRowsAvx2 : kMostRowsAvx512;
    g.row_blocks = (g.rows + most_rows - 1) / most_rows;
    g.block_rows = (g.rows + g.row_blocks - 1) / g.row_blocks;
    if (avx2) {
        g.block_inputs = inputs_of_avx2_block(g, pattern.nnz / static_cast<double>(g.rows * g.inputs));
        g.input_blocks = (g.inputs + g.block_inputs - 1) / g.block_inputs;
    } else {
        const int64_t most = pairs ? kMaxBlockPairs : kMaxBlockInputs;
        g.input_blocks = (g.inputs + most - 1) / most;
        g.block_inputs = (g.inputs + g.input_blocks - 1) / g.input_blocks;
    }
    std::vector<uint32_t> words = pattern.with_columns([&](auto columns) { return row_bits(pattern, columns, g); });
    if (pairs) {
        g.kept = std::move(words);
        words = match(g, threads);
    }
    const int64_t blocks = g.row_blocks * g.input_blocks;
    std::vector<int64_t> size(static_cast<size_t>(blocks)), used(static_cast<size_t>(blocks));
    g.entry.resize(static_cast<size_t>(blocks));
    g.value_start.resize(static_cast<size_t>(blocks));

    g.entries = pattern.nnz;
    const int64_t passes = avx2 ? tiles_of_group(g) / 4 : kPassesPerPrefetch;
    const auto block = [&](int64_t index, uint8_t* out) {
        const int64_t input_block = index / g.row_blocks, row_block = index % g.row_blocks;
        const int64_t first = input_block * g.block_inputs;
        const int64_t inputs = std::min(g.block_inputs, g.inputs - first);
        const int64_t rows = std::min(g.block_rows, g.rows - row_block * g.block_rows);
        const uint32_t* word = words.data() + row_block * g.inputs + first;
        if (!out) {
            for (int64_t i = 0; i < inputs; ++i) used[index] += __builtin_popcount(word[i]);
        }
        const int64_t next_code = g.entry[(index + 1) % blocks] - g.entry[index];
        const uint16_t* partner = pairs ? g.partner.data() + row_block * g.inputs + first : nullptr;
        const auto assemble = avx2 ? assemble_avx2 : assemble_avx512;
        return static_cast<int64_t>(
            assemble(out, {word, partner, inputs, static_cast<int>(rows), first == 0, used[index], passes, next_code}));
    };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < blocks; ++i) size[i] = block(i, nullptr);
    int64_t bytes = 0, values = 0;
    for (int64_t i = 0; i < blocks; ++i) {
        g.entry[i] = bytes;
        g.value_start[i] = values;
        bytes += size[i];
        values += used[i];
    }
    g.entries = values;
    if (bytes > limit) return false;
    uint8_t* code = g.code.reserve(static_cast<size_t>(bytes));
    if (!code) return false;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < blocks; ++i) block(i, code + g.entry[i]);
    if (!pairs && transposed) {
        g.counts = entries_of_inputs(words, g);
    } else if (!pairs) {
        g.starts = starts_of_inputs(words, g);
    }
    return g.code.seal();
}

namespace {

// Packs one tile of a block of inputs from x, which points to the tile's first token. False if pairs have a value that
// is not finite.
template <class T>
bool pack_tile(const Generated& g, const Packing& packing, const T* x, int tokens, int64_t first, int64_t inputs,
               float* tile) {
    packing.pack(x + first, g.features, tokens, inputs, tile, 16);
    return true;
}
bool pack_tile(const Generated& g, const Packing& packing, const Bf16* x, int tokens, int64_t first, int64_t inputs,
               float* tile) {
    if (g.pairs) {
        const int64_t features = std::min(2 * inputs, g.features - 2 * first);
        return pack_pairs(x + 2 * first, g.features, tokens, features, tile);
    }
    packing.pack(x + first, g.features, tokens, inputs, tile, 16);
    return true;
}

// Tiles of a task: at most tiles_of_group, and such that the number of tasks is a multiple of the threads.
int64_t tiles_of_task(const Generated& g, int64_t tiles, int threads) {
    const int64_t wish = tiles_of_group(g);
    int64_t groups = (tiles + wish - 1) / wish;
    groups = (groups + threads - 1) / threads * threads;
    return (tiles + groups - 1) / groups;
}

// Number of parts of the rows. All groups of tiles process one part before the next.
int64_t parts_of_rows(const Generated& g) {
    const int64_t worth = g.entries / (g.inputs * kWorkOfPackedElement);
    return std::clamp<int64_t>(std::min(g.entries * (g.avx2 ? kCodeBytesOfEntryAvx2 + 4 : kBytesOfEntry) / kBytesOfPart, worth), 1, g.row_blocks);
}

BlockCode code_of(const Generated& g, int64_t block) {
    return reinterpret_cast<BlockCode>(reinterpret_cast<uintptr_t>(g.code.code() + g.entry[block]));
}

}  // namespace

void spmm_tiles(const Generated& g, const float* x, int64_t tiles, const float* ordered, float* y, int threads) {
    const int64_t group = tiles_of_task(g, tiles, threads);
    const int64_t groups = (tiles + group - 1) / group;
    const int64_t parts = parts_of_rows(g);
    const int64_t x_stride = tile_floats(g.features), y_stride = tile_floats(g.rows);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < parts * groups; ++task) {
        const int64_t part = task / groups, first_tile = task % groups * group;
        const int64_t count = std::min(group, tiles - first_tile);
        for (int64_t k = 0; k < g.input_blocks; ++k) {
            const float* x_tiles = x + first_tile * x_stride + k * g.block_inputs * 16;
            for (int64_t b = g.row_blocks * part / parts; b < g.row_blocks * (part + 1) / parts; ++b) {
                const int64_t index = k * g.row_blocks + b;
                code_of(g, index)(x_tiles, ordered + g.value_start[index], y + first_tile * y_stride + b * g.block_rows * 16,
                                  count, x_stride * 4, y_stride * 4);
            }
        }
    }
}

template <class T>
bool spmm_generated(const Generated& g, const Packing& packing, const T* x, int64_t tokens, const float* ordered,
                    const float* bias, T* y, int threads, Scratch& scratch) {
    const int64_t tiles = (tokens + 15) / 16;
    // With few tokens the rows are divided among the threads instead of the groups, and each part packs x.
    const bool by_tokens = tiles >= 4 * threads;
    const int64_t group = tiles_of_task(g, tiles, by_tokens ? threads : 1);
    const int64_t groups = (tiles + group - 1) / group;
    const int64_t parts = by_tokens ? parts_of_rows(g) : std::min<int64_t>(g.row_blocks, threads);
    const int64_t y_stride = tile_floats(g.rows);
    const int64_t x_floats = g.block_inputs * 16 * group;
    const int64_t y_floats = y_stride * group;
    float* memory = scratch.floats((x_floats + y_floats) * threads);
    const bool stream = streamed(y, tokens, g.rows, threads);
    std::atomic<bool> finite{true};

#pragma omp parallel num_threads(threads)
    {
        float* x_packed = memory;
#ifdef _OPENMP
        x_packed += omp_get_thread_num() * (x_floats + y_floats);
#endif
        float* y_packed = x_packed + x_floats;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < groups * parts; ++task) {
            const int64_t part = task / groups, first_tile = task % groups * group;
            const int64_t count = std::min(group, tiles - first_tile);
            const int64_t begin = g.row_blocks * part / parts, end = g.row_blocks * (part + 1) / parts;
            const auto lanes = [&](int64_t tile) {
                return static_cast<int>(std::min<int64_t>(16, tokens - (first_tile + tile) * 16));
            };
            for (int64_t k = 0; k < g.input_blocks; ++k) {
                const int64_t first = k * g.block_inputs;
                const int64_t inputs = std::min(g.block_inputs, g.inputs - first);
                for (int64_t t = 0; t < count; ++t) {
                    const T* tokens_x = x + (first_tile + t) * 16 * g.features;
                    if (!pack_tile(g, packing, tokens_x, lanes(t), first, inputs, x_packed + t * inputs * 16)) {
                        finite.store(false, std::memory_order_relaxed);
                    }
                }
                for (int64_t b = begin; b < end; ++b) {
                    const int64_t index = k * g.row_blocks + b;
                    code_of(g, index)(x_packed, ordered + g.value_start[index], y_packed + b * g.block_rows * 16, count,
                                      inputs * 64, y_stride * 4);
                }
            }
            const int64_t first_row = begin * g.block_rows;
            const int64_t rows = std::min(end * g.block_rows, g.rows) - first_row;
            for (int64_t t = 0; t < count; ++t) {
                packing.unpack(y_packed + t * y_stride + first_row * 16, 16, lanes(t), rows,
                               bias ? bias + first_row : nullptr,
                               y + (first_tile + t) * 16 * g.rows + first_row, g.rows, stream);
            }
        }
    }
    return finite.load();
}

template bool spmm_generated(const Generated&, const Packing&, const float*, int64_t, const float*, const float*, float*,
                             int, Scratch&);
template bool spmm_generated(const Generated&, const Packing&, const Bf16*, int64_t, const float*, const float*, Bf16*,
                             int, Scratch&);

}  // namespace spdf::jit

#endif
