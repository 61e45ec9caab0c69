#include "pack/pack.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include "pack/ahead.hpp"

namespace spdf {

namespace {

constexpr int64_t kAhead = 64;  // floats: four lines

inline __m256 load(const float* x) { return _mm256_loadu_ps(x); }
// Widened to float.
inline __m256 load(const Bf16* x) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// 8 x 8 transpose in registers.
inline void transpose(__m256* r) {
    __m256 s[8];
    for (int i = 0; i < 4; ++i) {
        s[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        s[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i += 4) {
        const __m256 a = _mm256_unpacklo_ps(s[i], s[i + 1]), b = _mm256_unpackhi_ps(s[i], s[i + 1]);
        const __m256 c = _mm256_unpacklo_ps(s[i + 2], s[i + 3]), d = _mm256_unpackhi_ps(s[i + 2], s[i + 3]);
        r[i] = _mm256_shuffle_ps(a, c, 0x44);
        r[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
        r[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        r[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
}

// 16 features at a time: each line of x is read once, whole. The remaining features are packed one by one.
template <class T>
void pack(const T* x, int64_t row_length, int tokens, int64_t features, float* tile, int64_t stride) {
    constexpr int64_t kDistance = kAhead * static_cast<int64_t>(sizeof(float) / sizeof(T));
    int64_t f = 0;
    for (; f + 16 <= features; f += 16) {
        const T* next = ahead(x, 16 * row_length, features, f, kDistance);
        for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length, 0, 2);
        for (int half = 0; half < 16; half += 8) {
            for (int part = 0; part < 16; part += 8) {
                __m256 r[8];
                for (int t = 0; t < 8; ++t) {
                    r[t] = half + t < tokens ? load(x + (half + t) * row_length + f + part) : _mm256_setzero_ps();
                }
                transpose(r);
                for (int i = 0; i < 8; ++i) _mm256_storeu_ps(tile + (f + part + i) * stride + half, r[i]);
            }
        }
    }
    for (; f < features; ++f) {
        for (int t = 0; t < 16; ++t) tile[f * stride + t] = t < tokens ? to_float(x[t * row_length + f]) : 0.0f;
    }
}

// Rounded to bf16, to nearest even, in the lower half of each lane. A NaN stays a NaN.
inline __m256i rounded(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), quiet, nan);
}

template <bool kStream>
inline void save(float* to, __m256 low, __m256 high) {
    if (kStream) {
        _mm256_stream_ps(to, low);
        _mm256_stream_ps(to + 8, high);
    } else {
        _mm256_storeu_ps(to, low);
        _mm256_storeu_ps(to + 8, high);
    }
}
template <bool kStream>
inline void save(Bf16* to, __m256 low, __m256 high) {
    static_assert(!kStream, "16 features of bf16 are half a line");
    const __m256i mixed = _mm256_packus_epi32(rounded(low), rounded(high));  // 128-bit lanes: low, high, low, high
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xd8));
}

// With kStream the distance of rows is a multiple of a line. The rest of the first line is written first, then whole
// lines.
template <bool kStream, class T>
void unpack_rows(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, T* y,
                 int64_t row_length) {
    constexpr int64_t kDistance = kAhead * static_cast<int64_t>(sizeof(float) / sizeof(T));
    const auto one_by_one = [&](int64_t from, int64_t to) {
        for (int t = 0; t < tokens; ++t) {
            for (int64_t f = from; f < to; ++f) store(&y[t * row_length + f], tile[f * stride + t] + (bias ? bias[f] : 0.0f));
        }
    };
    int64_t f = 0;
    if (kStream) {
        const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(y) % 64 / sizeof(T));
        const int64_t whole = 64 / static_cast<int64_t>(sizeof(T));
        f = past ? (whole - past < features ? whole - past : features) : 0;
        one_by_one(0, f);
    }
    for (; f + 16 <= features; f += 16) {
        if (!kStream) {
            T* next = ahead(y, 16 * row_length, features, f, kDistance);
            for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length, 1);
        }
        const __m256 add_low = bias ? _mm256_loadu_ps(bias + f) : _mm256_setzero_ps();
        const __m256 add_high = bias ? _mm256_loadu_ps(bias + f + 8) : _mm256_setzero_ps();
        for (int half = 0; half < tokens; half += 8) {
            __m256 low[8], high[8];
            for (int i = 0; i < 8; ++i) low[i] = _mm256_loadu_ps(tile + (f + i) * stride + half);
            transpose(low);
            for (int i = 0; i < 8; ++i) high[i] = _mm256_loadu_ps(tile + (f + 8 + i) * stride + half);
            transpose(high);
            const int count = tokens - half < 8 ? tokens - half : 8;
            for (int t = 0; t < count; ++t) {
                save<kStream>(y + (half + t) * row_length + f, _mm256_add_ps(low[t], add_low),
                              _mm256_add_ps(high[t], add_high));
            }
        }
    }
    one_by_one(f, features);
    if (kStream) _mm_sfence();
}

void unpack_f32(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, float* y,
                int64_t row_length, bool stream) {
    (stream && row_length % 16 == 0 ? unpack_rows<true, float> : unpack_rows<false, float>)(tile, stride, tokens, features,
                                                                                           bias, y, row_length);
}

void unpack_bf16(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, Bf16* y,
                 int64_t row_length, bool /*stream*/) {
    unpack_rows<false>(tile, stride, tokens, features, bias, y, row_length);
}

}  // namespace

const Packing kAvx2Packing = {pack<float>, pack<Bf16>, unpack_f32, unpack_bf16};

}  // namespace spdf

#endif
