#include "pack/pack.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include "pack/ahead.hpp"
#include "pack/transpose_avx512.hpp"

namespace spdf {

namespace {

constexpr int64_t kAhead = 64;  // floats, or pairs of bf16: four lines

inline __mmask16 first(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }
inline __mmask32 first_of_32(int64_t count) { return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1; }

void pack_f32(const float* x, int64_t row_length, int tokens, int64_t features, float* tile, int64_t stride) {
    for (int64_t f = 0; f < features; f += 16) {
        const int64_t count = features - f < 16 ? features - f : 16;
        const __mmask16 lanes = first(count);
        __m512 r[16];
        const float* next = ahead(x, 16 * row_length, features, f, kAhead);
        for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length, 0, 2);
        for (int t = 0; t < 16; ++t) {
            r[t] = t < tokens ? _mm512_maskz_loadu_ps(lanes, x + t * row_length + f) : _mm512_setzero_ps();
        }
        transpose(r);
        if (count == 16) {
            for (int i = 0; i < 16; ++i) _mm512_storeu_ps(tile + (f + i) * stride, r[i]);
        } else {
            for (int i = 0; i < count; ++i) _mm512_storeu_ps(tile + (f + i) * stride, r[i]);
        }
    }
}

// Elements from y to the end of its line.
template <class T>
inline int64_t to_end_of_line(const T* y) {
    return static_cast<int64_t>((64 - reinterpret_cast<uintptr_t>(y) % 64) / sizeof(T));
}

// With kStream the distance of rows is a multiple of a line. The rest of the first line is written first, then whole
// lines.
template <bool kStream>
void unpack_rows_f32(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, float* y,
                     int64_t row_length) {
    int64_t count = kStream ? to_end_of_line(y) : 16;
    for (int64_t f = 0; f < features; f += count, count = 16) {
        count = features - f < count ? features - f : count;
        const __mmask16 lanes = first(count);
        __m512 r[16];
        if (!kStream) {
            float* next = ahead(y, 16 * row_length, features, f, kAhead);
            for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length, 1);
        }
        for (int i = 0; i < 16; ++i) r[i] = i < count ? _mm512_loadu_ps(tile + (f + i) * stride) : _mm512_setzero_ps();
        transpose(r);
        const __m512 add = bias ? _mm512_maskz_loadu_ps(lanes, bias + f) : _mm512_setzero_ps();
        float* to = y + f;
        if (kStream && count == 16) {
            for (int t = 0; t < tokens; ++t) _mm512_stream_ps(to + t * row_length, _mm512_add_ps(r[t], add));
        } else {
            for (int t = 0; t < tokens; ++t) {
                _mm512_mask_storeu_ps(to + t * row_length, lanes, _mm512_add_ps(r[t], add));
            }
        }
    }
    if (kStream) _mm_sfence();
}

void unpack_f32(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, float* y,
                int64_t row_length, bool stream) {
    (stream && row_length % 16 == 0 ? unpack_rows_f32<true> : unpack_rows_f32<false>)(tile, stride, tokens, features, bias,
                                                                                     y, row_length);
}

// bf16 is transposed as pairs of neighbouring features: half the shuffles, and whole lines of x and y.

void pack_bf16(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* tile, int64_t stride) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    for (int64_t f = 0; f < features; f += 32) {
        const int64_t count = features - f < 32 ? features - f : 32;
        const __mmask32 lanes = first_of_32(count);
        __m512 r[16];
        const Bf16* next = ahead(x, 16 * row_length, features, f, 2 * kAhead);
        for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length, 0, 2);
        for (int t = 0; t < 16; ++t) {
            r[t] = t < tokens ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(lanes, x + t * row_length + f))
                              : _mm512_setzero_ps();
        }
        transpose(r);
        const auto save = [&](int i) {
            const __m512i pairs = _mm512_castps_si512(r[i / 2]);
            _mm512_storeu_si512(tile + (f + i) * stride,
                                i % 2 ? _mm512_and_si512(pairs, upper) : _mm512_slli_epi32(pairs, 16));
        };
        if (count == 32) {
            for (int i = 0; i < 32; ++i) save(i);
        } else {
            for (int i = 0; i < count; ++i) save(i);
        }
    }
}

// Rounded to bf16, to nearest even, in the upper half of each lane; the lower half is arbitrary. NaN stays NaN.
inline __m512i rounded(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(sum, nan, bits, _mm512_set1_epi32(0x400000));
}

template <bool kStream>
void unpack_rows_bf16(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, Bf16* y,
                      int64_t row_length) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    int64_t count = kStream ? to_end_of_line(y) : 32;
    for (int64_t f = 0; f < features; f += count, count = 32) {
        count = features - f < count ? features - f : count;
        const __mmask32 lanes = first_of_32(count);
        if (!kStream) {
            Bf16* next = ahead(y, 16 * row_length, features, f, 2 * kAhead);
            for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length, 1);
        }
        const auto feature = [&](int i) {
            const __m512 sums = i < count ? _mm512_loadu_ps(tile + (f + i) * stride) : _mm512_setzero_ps();
            return rounded(bias && i < count ? _mm512_add_ps(sums, _mm512_set1_ps(bias[f + i])) : sums);
        };
        __m512 r[16];
        for (int i = 0; i < 16; ++i) {
            const __m512i even = _mm512_srli_epi32(feature(2 * i), 16);
            r[i] = _mm512_castsi512_ps(_mm512_or_si512(even, _mm512_and_si512(feature(2 * i + 1), upper)));
        }
        transpose(r);
        Bf16* to = y + f;
        if (kStream && count == 32) {
            for (int t = 0; t < tokens; ++t) {
                _mm512_stream_si512(reinterpret_cast<__m512i*>(to + t * row_length), _mm512_castps_si512(r[t]));
            }
        } else {
            for (int t = 0; t < tokens; ++t) _mm512_mask_storeu_epi16(to + t * row_length, lanes, _mm512_castps_si512(r[t]));
        }
    }
    if (kStream) _mm_sfence();
}

void unpack_bf16(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, Bf16* y,
                 int64_t row_length, bool stream) {
    (stream && row_length % 32 == 0 ? unpack_rows_bf16<true> : unpack_rows_bf16<false>)(tile, stride, tokens, features,
                                                                                        bias, y, row_length);
}

}  // namespace

const Packing kAvx512Packing = {pack_f32, pack_bf16, unpack_f32, unpack_bf16};

}  // namespace spdf

#endif
