#include "pack/pack.hpp"

namespace spdf {

namespace {

template <class T>
void pack(const T* x, int64_t row_length, int tokens, int64_t features, float* tile, int64_t stride) {
    constexpr int64_t kBlock = 16;  // a block of both sides stays in the first-level cache
    for (int64_t begin = 0; begin < features; begin += kBlock) {
        const int64_t end = begin + kBlock < features ? begin + kBlock : features;
        for (int t = 0; t < 16; ++t) {
            for (int64_t f = begin; f < end; ++f) {
                tile[f * stride + t] = t < tokens ? to_float(x[t * row_length + f]) : 0.0f;
            }
        }
    }
}

template <class T>
void unpack(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, T* y,
            int64_t row_length, bool /*stream*/) {
    constexpr int64_t kBlock = 16;
    for (int64_t begin = 0; begin < features; begin += kBlock) {
        const int64_t end = begin + kBlock < features ? begin + kBlock : features;
        for (int t = 0; t < tokens; ++t) {
            for (int64_t f = begin; f < end; ++f) {
                store(&y[t * row_length + f], tile[f * stride + t] + (bias ? bias[f] : 0.0f));
            }
        }
    }
}

}  // namespace

const Packing kPortablePacking = {pack<float>, pack<Bf16>, unpack<float>, unpack<Bf16>};

}  // namespace spdf
