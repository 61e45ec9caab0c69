// Compares every product through the C interface with sums in double precision over kept entries, on buffers of exact
// size, so that a sanitizer detects every access out of bounds.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "pack/pack.hpp"
#include "spdf_kernels.h"
#include "test/check.hpp"

namespace spdf::test {

namespace {

struct Case {
    int64_t out, in, tokens;
    double density;
};

constexpr Case kCases[] = {
    {1, 1, 1, 1.0},     {1, 1, 1, 0.0},      {0, 5, 3, 0.5},     {5, 0, 3, 0.5},      {7, 5, 0, 0.5},
    {3, 17, 15, 0.6},   {31, 16, 16, 0.5},   {32, 33, 17, 1.0},  {63, 100, 33, 0.1},  {94, 31, 49, 0.3},
    {100, 769, 5, 0.2}, {40, 1537, 70, 0.05}, {257, 64, 130, 0.5}, {2, 70000, 3, 0.01}, {70000, 2, 3, 0.3},
    {300, 401, 40, 0.007}, {65, 1601, 20, 0.5},  // bf16: too few entries for pairs; several windows of pairs, one of them short
    {600, 900, 7, 0.5},  // enough work for several threads, too few tokens to share
    {64, 3, 4200, 0.5}, {3, 64, 4200, 0.5}, {70, 3, 4200, 0.5},  // non-temporal stores; rows that are not whole lines
};

float as_float(float value) { return value; }
float as_float(Bf16 value) { return to_float(value); }

template <class T>
std::vector<T> random_tensor(int64_t size, uint64_t seed) {
    Random random(seed);
    std::vector<T> tensor(static_cast<size_t>(size));
    for (T& value : tensor) store(&value, random.symmetric());
    return tensor;
}

template <class T>
bool close(const std::vector<T>& result, const std::vector<double>& exact, double terms) {
    const double rounding = sizeof(T) == 2 ? 1.0 / 256 : 1.0 / (1 << 22);
    for (size_t i = 0; i < exact.size(); ++i) {
        const double error = std::fabs(as_float(result[i]) - exact[i]);
        if (!(error <= rounding * std::fabs(exact[i]) + (terms + 4) / (1 << 22))) return false;
    }
    return true;
}

template <class T>
void test_case(const Case& c, int backend, int threads) {
    Random random(static_cast<uint64_t>(c.out * 31 + c.in));
    std::vector<uint8_t> bits(static_cast<size_t>((c.out * c.in + 7) / 8));
    std::vector<int64_t> rows, columns;
    for (int64_t i = 0; i < c.out * c.in; ++i) {
        if (random.uniform() >= c.density) continue;
        bits[static_cast<size_t>(i / 8)] |= static_cast<uint8_t>(128 >> (i % 8));
        rows.push_back(i / c.in);
        columns.push_back(i % c.in);
    }
    const auto nnz = static_cast<int64_t>(rows.size());
    spdf_pattern* pattern = spdf_pattern_new(bits.data(), c.out, c.in, nnz);
    check(pattern != nullptr, "pattern");
    const auto x = random_tensor<T>(c.tokens * c.in, 1), dy = random_tensor<T>(c.tokens * c.out, 2);
    const auto values = random_tensor<T>(nnz, 3), bias = random_tensor<T>(c.out, 4);
    std::vector<T> y(dy.size()), dx(x.size()), dvalues(values.size());
    std::vector<double> y_exact(dy.size()), dx_exact(x.size()), dvalues_exact(values.size());
    for (int64_t t = 0; t < c.tokens; ++t) {
        for (int64_t o = 0; o < c.out; ++o) y_exact[t * c.out + o] = as_float(bias[o]);
        for (int64_t i = 0; i < nnz; ++i) {
            y_exact[t * c.out + rows[i]] += double{as_float(x[t * c.in + columns[i]])} * as_float(values[i]);
            dx_exact[t * c.in + columns[i]] += double{as_float(dy[t * c.out + rows[i]])} * as_float(values[i]);
            dvalues_exact[i] += double{as_float(dy[t * c.out + rows[i]])} * as_float(x[t * c.in + columns[i]]);
        }
    }
    const int bf16 = sizeof(T) == 2;
    for (int repeat = 0; repeat < 2; ++repeat) {  // the second time all products are prepared
        check(spdf_spmm(pattern, backend, 0, bf16, x.data(), c.tokens, values.data(), bias.data(), y.data(), threads) ==
                  SPDF_OK, "forward runs");
        check(spdf_spmm(pattern, backend, 1, bf16, dy.data(), c.tokens, values.data(), nullptr, dx.data(), threads) ==
                  SPDF_OK, "dX runs");
        check(spdf_grad_values(pattern, backend, bf16, dy.data(), x.data(), c.tokens, dvalues.data(), threads) ==
                  SPDF_OK, "dW runs");
        check(close(y, y_exact, static_cast<double>(c.in) * c.density), "forward is right");
        check(close(dx, dx_exact, static_cast<double>(c.out) * c.density), "dX is right");
        check(close(dvalues, dvalues_exact, static_cast<double>(c.tokens)), "dW is right");
    }
    spdf_pattern_free(pattern);
}

// Tiles of 16 tokens in the layout of spdf_spmm_packed; lanes past the last token are zero.
std::vector<float> packed(const std::vector<float>& x, int64_t tokens, int64_t features) {
    std::vector<float> tiles(static_cast<size_t>((tokens + 15) / 16 * (features | 1) * 16));
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t f = 0; f < features; ++f) tiles[(t / 16 * (features | 1) + f) * 16 + t % 16] = x[t * features + f];
    }
    return tiles;
}

void test_packed(int backend, int64_t out, int64_t in, int64_t tokens, int threads) {
    Random random(7);
    std::vector<uint8_t> bits(static_cast<size_t>((out * in + 7) / 8));
    int64_t nnz = 0;
    for (int64_t i = 0; i < out * in; ++i) {
        if (random.uniform() >= 0.3) continue;
        bits[static_cast<size_t>(i / 8)] |= static_cast<uint8_t>(128 >> (i % 8));
        ++nnz;
    }
    spdf_pattern* pattern = spdf_pattern_new(bits.data(), out, in, nnz);
    const auto values = random_tensor<float>(nnz, 3);
    for (int transposed = 0; transposed < 2; ++transposed) {
        const int64_t features = transposed ? out : in, rows = transposed ? in : out;
        const auto x = random_tensor<float>(tokens * features, 1);
        std::vector<float> y(static_cast<size_t>(tokens * rows));
        check(spdf_spmm(pattern, backend, transposed, 0, x.data(), tokens, values.data(), nullptr, y.data(), threads) ==
                  SPDF_OK, "row-major runs");
        const auto x_tiles = packed(x, tokens, features);
        std::vector<float> y_tiles(static_cast<size_t>((tokens + 15) / 16 * (rows | 1) * 16));
        check(spdf_spmm_packed(pattern, backend, transposed, x_tiles.data(), (tokens + 15) / 16, values.data(), y_tiles.data(),
                               threads) == SPDF_OK, "packed runs");
        check(y_tiles == packed(y, tokens, rows), "packed gives the same bits");
    }
    spdf_pattern_free(pattern);
}

void test_budget(int backend, int rows) {
    const std::vector<uint8_t> bits(128, 0xff);
    const int64_t before = spdf_code_bytes_in_use();
    spdf_set_code_budget(before);
    spdf_pattern* pattern = spdf_pattern_new(bits.data(), 32, 32, 1024);
    check(spdf_prepare(pattern, backend, 0, 0, 1) == rows, "no code beyond the budget");
    check(spdf_code_bytes(pattern) == 0 && spdf_code_bytes_in_use() == before, "nothing is counted");
    spdf_pattern_free(pattern);
    spdf_set_code_budget(int64_t{1} << 40);
    pattern = spdf_pattern_new(bits.data(), 32, 32, 1024);
    check(spdf_prepare(pattern, backend, 0, 0, 1) == backend, "code within the budget");
    check(spdf_code_bytes_in_use() == before + spdf_code_bytes(pattern), "code is counted");
    spdf_pattern_free(pattern);
    check(spdf_code_bytes_in_use() == before, "freed code is given back");
}

}  // namespace

void test_products() {
    for (int backend = SPDF_PORTABLE; backend <= SPDF_JIT_AVX2; ++backend) {
        if (const char* reason = spdf_backend_missing(backend)) {
            std::printf("back end %d left out: %s\n", backend, reason);
            continue;
        }
        for (const Case& c : kCases) {
            for (int threads = 1; threads <= 3; threads += 2) {
                test_case<float>(c, backend, threads);
                test_case<Bf16>(c, backend, threads);
            }
        }
    }
    for (const int backend : {SPDF_JIT, SPDF_JIT_AVX2}) {
        if (spdf_backend_missing(backend)) continue;
        test_budget(backend, backend == SPDF_JIT ? SPDF_AVX512 : SPDF_PORTABLE);
        for (int threads = 1; threads <= 3; threads += 2) {
            test_packed(backend, 8, 9, 1, threads);
            test_packed(backend, 33, 64, 17, threads);
            test_packed(backend, 70, 1537, 400, threads);
        }
    }
}

}  // namespace spdf::test
