// Row-major activations <-> feature-major tiles of 16 tokens, the layout of the products.
//
// A tile holds 16 adjacent tokens per feature: tile[f * stride + t]. Lanes past the last token are zero.
// Element type T: float or Bf16; tiles are always float.
#pragma once

#include <cstdint>

namespace spdf {

struct Bf16 {
    uint16_t bits;
};

static inline float to_float(float value) { return value; }
static inline float to_float(Bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    __builtin_memcpy(&result, &bits, 4);
    return result;
}

// Round to nearest even; a NaN stays a NaN.
static inline Bf16 to_bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return Bf16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return Bf16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
static inline void store(float* to, float value) { *to = value; }
static inline void store(Bf16* to, float value) { *to = to_bf16(value); }

// tile[f * stride + t] = x[t * row_length + f] for t < tokens (1..16), f < features.
using PackF32 = void (*)(const float* x, int64_t row_length, int tokens, int64_t features, float* tile, int64_t stride);
using PackBf16 = void (*)(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* tile, int64_t stride);
// y[t * row_length + f] = tile[f * stride + t] + bias[f] for t < tokens, f < features; bias may be null. `stream`: use
// non-temporal stores, if the back end has them and row_length is a multiple of a cache line.
using UnpackF32 = void (*)(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, float* y,
                           int64_t row_length, bool stream);
using UnpackBf16 = void (*)(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, Bf16* y,
                            int64_t row_length, bool stream);

// Whether y is written with non-temporal stores: if a thread's output is at least half a MiB. It would not stay in L2,
// and regular stores would evict packed operands and code.
template <class T>
bool streamed(const T*, int64_t tokens, int64_t features, int threads) {
    return tokens * features * static_cast<int64_t>(sizeof(T)) >= (int64_t{512} << 10) * threads;
}

struct Packing {
    PackF32 pack_f32;
    PackBf16 pack_bf16;
    UnpackF32 unpack_f32;
    UnpackBf16 unpack_bf16;

    void pack(const float* x, int64_t n, int t, int64_t f, float* to, int64_t s) const { pack_f32(x, n, t, f, to, s); }
    void pack(const Bf16* x, int64_t n, int t, int64_t f, float* to, int64_t s) const { pack_bf16(x, n, t, f, to, s); }
    void unpack(const float* from, int64_t s, int t, int64_t f, const float* b, float* y, int64_t n, bool stream) const {
        unpack_f32(from, s, t, f, b, y, n, stream);
    }
    void unpack(const float* from, int64_t s, int t, int64_t f, const float* b, Bf16* y, int64_t n, bool stream) const {
        unpack_bf16(from, s, t, f, b, y, n, stream);
    }
};

extern const Packing kPortablePacking;
#if defined(__x86_64__)
extern const Packing kAvx2Packing;
extern const Packing kAvx512Packing;
#endif

}  // namespace spdf
