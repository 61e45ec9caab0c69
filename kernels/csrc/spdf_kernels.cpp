#include "spdf_kernels.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>

#include "cpu.hpp"
#include "jit/generated.hpp"
#include "pack/pack.hpp"
#include "pattern/pattern.hpp"
#include "sddmm/sddmm.h"
#include "spmm/compact.hpp"
#include "spmm/rows.hpp"
#include "spmm/scratch.hpp"

namespace {

using spdf::Bf16;

std::atomic<int64_t> code_budget{int64_t{1} << 62};
std::atomic<int64_t> code_in_use{0};

#if defined(__x86_64__)

// Takes `bytes` from the code budget; false if it has fewer left.
bool take_code_bytes(int64_t bytes) {
    if (code_in_use.fetch_add(bytes) + bytes <= code_budget.load()) return true;
    code_in_use.fetch_sub(bytes);
    return false;
}

// Below this density almost no row keeps both inputs of a pair. Pairs gain nothing then, so packing widens bf16 to
// float.
constexpr double kPairsFromDensity = 0.01;

#endif

// Minimum multiply-adds per thread, because waking a thread takes microseconds. The bits do not depend on it.
constexpr int64_t kWorkOfThread = 500'000;

[[maybe_unused]] bool is_generated(int backend) { return backend == SPDF_JIT || backend == SPDF_JIT_AVX2; }

// The back end for products of `backend` without generated code.
int compressed_rows_of(int backend) {
    if (backend == SPDF_JIT) return SPDF_AVX512;
    return backend == SPDF_JIT_AVX2 ? SPDF_PORTABLE : backend;
}

int threads_for(int64_t tokens, int64_t nnz, int threads) {
    return static_cast<int>(std::clamp<int64_t>(tokens * nnz / kWorkOfThread, 1, std::max(threads, 1)));
}

}  // namespace

struct spdf_pattern {
    spdf::Pattern rows;
    mutable std::mutex mutex;  // guards preparation
    std::unique_ptr<spdf::Transpose> transpose;
    std::unique_ptr<spdf::jit::Generated> code[6];  // per Kind: forward, transposed
    bool code_refused[6] = {};
    spdf_sddmm* grad_values = nullptr;

    ~spdf_pattern() {
        spdf_sddmm_free(grad_values);
        for (const auto& direction : code) {
            if (direction) code_in_use.fetch_sub(static_cast<int64_t>(direction->code.bytes()));
        }
    }

    const spdf::Transpose& transposed() {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!transpose) transpose = std::make_unique<spdf::Transpose>(spdf::transpose_of(rows));
        return *transpose;
    }

    // Null when memory ends.
    const spdf_sddmm* sddmm() {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!grad_values) {
            grad_values = spdf_sddmm_prepare(rows.rows, rows.cols, rows.row_start.data(),
                                             rows.wide() ? nullptr : rows.col16.data(),
                                             rows.wide() ? rows.col32.data() : nullptr);
        }
        return grad_values;
    }

#if defined(__x86_64__)
    spdf::jit::Kind kind_of(int backend, bool bf16) const {
        if (backend == SPDF_JIT_AVX2) return spdf::jit::Kind::avx2;
        const bool pairs = bf16 && spdf::has_avx512_bf16() && rows.nnz > rows.rows * rows.cols * kPairsFromDensity;
        return pairs ? spdf::jit::Kind::avx512_pairs : spdf::jit::Kind::avx512;
    }

    // Null if the code does not fit the budget. The answer is kept, so that a layer's path does not change in training.
    const spdf::jit::Generated* generated(int backend, bool transposed, bool bf16, int threads) {
        const spdf::jit::Kind kind = kind_of(backend, bf16);
        const int slot = transposed + 2 * static_cast<int>(kind);
        const std::lock_guard<std::mutex> lock(mutex);
        if (!code[slot] && !code_refused[slot]) {
            auto direction = std::make_unique<spdf::jit::Generated>();
            const int64_t left = code_budget.load() - code_in_use.load();
            if (spdf::jit::generate(rows, transposed, kind, left, threads, *direction) &&
                take_code_bytes(static_cast<int64_t>(direction->code.bytes()))) {
                code[slot] = std::move(direction);
            } else {
                code_refused[slot] = true;
            }
        }
        return code[slot].get();
    }
#endif
};

namespace {

template <class T>
void fill_bias(const T* bias, int64_t tokens, int64_t features, T* y) {
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t f = 0; f < features; ++f) y[t * features + f] = bias ? bias[f] : T{};
    }
}

const float* as_floats(const float* from, int64_t, float*) { return from; }
const float* as_floats(const Bf16* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = spdf::to_float(from[i]);
    return to;
}

#if defined(__x86_64__)

void order(const spdf::Pattern& rows, const spdf::jit::Generated& code, const float* values, float* ordered, int threads) {
    spdf::jit::order_values(rows, code, values, ordered, threads);
}
void order(const spdf::Pattern& rows, const spdf::jit::Generated& code, const Bf16* values, float* ordered, int threads) {
    if (code.pairs) {
        spdf::jit::order_pairs(rows, code, values, reinterpret_cast<Bf16*>(ordered), threads);
    } else {
        spdf::jit::order_values(rows, code, values, ordered, threads);
    }
}

#endif

template <class T>
void spmm(spdf_pattern& pattern, [[maybe_unused]] int backend, bool transposed, const T* x, int64_t tokens, const T* values,
          const T* bias, T* y, int threads) {
    thread_local spdf::Scratch tiles_scratch, values_scratch, bias_scratch;
    const int64_t features = transposed ? pattern.rows.cols : pattern.rows.rows;
    if (tokens == 0 || features == 0) return;
    if (pattern.rows.nnz == 0) return fill_bias(bias, tokens, features, y);
    const float* bias_f32 = bias ? as_floats(bias, features, bias_scratch.floats(features)) : nullptr;
#if defined(__x86_64__)
    if (is_generated(backend)) {
        const spdf::jit::Generated* code = pattern.generated(backend, transposed, sizeof(T) == 2, threads);
        if (code) {
            const spdf::Packing& packing = code->avx2 ? spdf::kAvx2Packing : spdf::kAvx512Packing;
            float* ordered = values_scratch.floats(code->entries);
            order(pattern.rows, *code, values, ordered, threads);
            if (spmm_generated(*code, packing, x, tokens, ordered, bias_f32, y, threads, tiles_scratch)) {
                return;
            }
        }
    }
    const spdf::CompactBackend& portable = spdf::has_avx2() ? spdf::kAvx2Compact : spdf::kPortableCompact;
    const bool rows_avx512 = compressed_rows_of(backend) == SPDF_AVX512;
    const spdf::CompactBackend& compact = rows_avx512 ? spdf::kAvx512Compact : portable;
#else
    const spdf::CompactBackend& compact = spdf::kPortableCompact;
#endif
    float* ordered = values_scratch.floats(pattern.rows.nnz);
    if (transposed) {
        const spdf::Transpose& transpose = pattern.transposed();
        spdf::transpose_values(pattern.rows, transpose, values, ordered, threads);
        spmm_compact(compact, spdf::transposed_rows(pattern.rows, transpose), x, tokens, ordered, bias_f32, y, threads,
                     tiles_scratch);
    } else {
        spmm_compact(compact, spdf::forward_rows(pattern.rows), x, tokens,
                     as_floats(values, pattern.rows.nnz, ordered), bias_f32, y, threads, tiles_scratch);
    }
}

}  // namespace

extern "C" {

const char* spdf_backend_missing(int backend) {
    if (backend == SPDF_PORTABLE) return nullptr;
#if defined(__x86_64__)
    if (backend == SPDF_JIT_AVX2) {
        if (!spdf::has_avx2()) return "this CPU (or its operating system) has no AVX2 and FMA";
    } else if (!spdf::has_avx512()) {
        return "this CPU (or its operating system) has no AVX-512 F, BW, DQ, VL";
    }
    if (is_generated(backend) && !spdf::jit::code_allowed()) return "this host does not let a process run generated code";
    return nullptr;
#else
    return "the library was built for another architecture than x86-64";
#endif
}

int spdf_backend_forced(void) {
    const char* name = std::getenv("SPDF_KERNELS_BACKEND");
    return name && *name;
}

int spdf_cpu_multiplies_bf16(void) { return spdf::has_bf16_products(); }

int spdf_abi_version(void) { return 1; }

int spdf_cpu_is_intel(void) { return spdf::is_intel(); }

spdf_pattern* spdf_pattern_new(const uint8_t* bits, int64_t out, int64_t in, int64_t nnz) {
    try {
        auto pattern = std::make_unique<spdf_pattern>();
        pattern->rows = spdf::pattern_from_bits(bits, out, in, nnz);
        return pattern.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void spdf_pattern_free(spdf_pattern* pattern) { delete pattern; }

int spdf_spmm(spdf_pattern* pattern, int backend, int transposed, int bf16, const void* x, int64_t tokens,
              const void* values, const void* bias, void* y, int threads) {
    threads = threads_for(tokens, pattern->rows.nnz, threads);
    try {
        if (bf16) {
            spmm(*pattern, backend, transposed != 0, static_cast<const Bf16*>(x), tokens,
                 static_cast<const Bf16*>(values), static_cast<const Bf16*>(bias), static_cast<Bf16*>(y), threads);
        } else {
            spmm(*pattern, backend, transposed != 0, static_cast<const float*>(x), tokens,
                 static_cast<const float*>(values), static_cast<const float*>(bias), static_cast<float*>(y), threads);
        }
    } catch (const std::bad_alloc&) {
        return SPDF_NO_MEMORY;
    }
    return SPDF_OK;
}

int spdf_spmm_packed([[maybe_unused]] spdf_pattern* pattern, [[maybe_unused]] int backend,
                     [[maybe_unused]] int transposed, [[maybe_unused]] const float* x, [[maybe_unused]] int64_t tiles,
                     [[maybe_unused]] const float* values, [[maybe_unused]] float* y, [[maybe_unused]] int threads) {
#if defined(__x86_64__)
    if (!is_generated(backend) || spdf_backend_missing(backend) || pattern->rows.nnz == 0) return SPDF_NO_CODE;
    if (tiles == 0) return SPDF_OK;
    thread_local spdf::Scratch values_scratch;
    try {
        threads = threads_for(tiles * 16, pattern->rows.nnz, threads);
        const spdf::jit::Generated* code = pattern->generated(backend, transposed != 0, false, threads);
        if (!code) return SPDF_NO_CODE;
        float* ordered = values_scratch.floats(code->entries);
        order(pattern->rows, *code, values, ordered, threads);
        spdf::jit::spmm_tiles(*code, x, tiles, ordered, y, threads);
        return SPDF_OK;
    } catch (const std::bad_alloc&) {
        return SPDF_NO_MEMORY;
    }
#else
    return SPDF_NO_CODE;
#endif
}

int spdf_grad_values(spdf_pattern* pattern, int backend, int bf16, const void* dy, const void* x, int64_t tokens,
                     void* values, int threads) {
    const int64_t out = pattern->rows.rows, in = pattern->rows.cols;
    const spdf_sddmm* prepared = pattern->sddmm();
    if (!prepared) return SPDF_NO_MEMORY;
    threads = threads_for(tokens, pattern->rows.nnz, threads);
    const bool portable = compressed_rows_of(backend) == SPDF_PORTABLE;
    const int isa = portable ? SPDF_SDDMM_PORTABLE : spdf_sddmm_best_isa();
    const int status =
        bf16 ? spdf_sddmm_bf16(prepared, static_cast<const uint16_t*>(dy), out, static_cast<const uint16_t*>(x), in,
                               tokens, static_cast<uint16_t*>(values), threads, isa)
             : spdf_sddmm_f32(prepared, static_cast<const float*>(dy), out, static_cast<const float*>(x), in, tokens,
                              static_cast<float*>(values), threads, isa);
    return status == SPDF_SDDMM_OK ? SPDF_OK : SPDF_NO_MEMORY;
}

int spdf_prepare_grad_values(spdf_pattern* pattern) { return pattern->sddmm() ? SPDF_OK : SPDF_NO_MEMORY; }

int spdf_prepare(spdf_pattern* pattern, int backend, int transposed, int bf16, int threads) {
    try {
        if (pattern->rows.nnz == 0) return backend;
#if defined(__x86_64__)
        if (is_generated(backend)) {
            if (pattern->generated(backend, transposed != 0, bf16 != 0, threads)) return backend;
            backend = compressed_rows_of(backend);
        }
#else
        (void)bf16;
        (void)threads;
#endif
        if (transposed) pattern->transposed();
        return backend;
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

int64_t spdf_index_bytes(const spdf_pattern* pattern) {
    const spdf::Pattern& rows = pattern->rows;
    const std::lock_guard<std::mutex> lock(pattern->mutex);
    size_t bytes = rows.row_start.size() * 8 + rows.col16.size() * 2 + rows.col32.size() * 4;
    if (pattern->transpose) {
        const spdf::Transpose& t = *pattern->transpose;
        bytes += t.start.size() * 8 + t.index16.size() * 2 + t.index32.size() * 4;
    }
    for (const auto& direction : pattern->code) {
        if (direction) bytes += static_cast<size_t>(direction->index_bytes());
    }
    if (pattern->grad_values) bytes += static_cast<size_t>(spdf_sddmm_bytes(pattern->grad_values));
    return static_cast<int64_t>(bytes);
}

int64_t spdf_code_bytes(const spdf_pattern* pattern) {
    const std::lock_guard<std::mutex> lock(pattern->mutex);
    int64_t bytes = 0;
    for (const auto& direction : pattern->code) {
        if (direction) bytes += static_cast<int64_t>(direction->code.bytes());
    }
    return bytes;
}

void spdf_set_code_budget(int64_t bytes) { code_budget.store(bytes); }

int64_t spdf_code_bytes_in_use(void) { return code_in_use.load(); }

}  // extern "C"
