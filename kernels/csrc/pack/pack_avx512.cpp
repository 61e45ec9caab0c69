#include "pack/pack.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include "pack/transpose_avx512.hpp"

namespace spdf {

namespace {

inline __m512 load(const float* from, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, from); }
inline __m512 load(const Bf16* from, __mmask16 lanes) {
    const __m256i half = _mm256_maskz_loadu_epi16(lanes, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline void save(float* to, __mmask16 lanes, __m512 value) { _mm512_mask_storeu_ps(to, lanes, value); }
inline void save(Bf16* to, __mmask16 lanes, __m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet)));
}

// Each row is a stream of its own, 16 at a time: more than the hardware follows, so ask four lines ahead.
constexpr int64_t kAhead = 64;

inline __mmask16 first(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

template <class T>
void pack(const T* x, int64_t row_length, int tokens, int64_t features, float* tile, int64_t stride) {
    for (int64_t f = 0; f < features; f += 16) {
        const int64_t count = features - f < 16 ? features - f : 16;
        const __mmask16 lanes = first(count);
        __m512 r[16];
        for (int t = 0; t < tokens; ++t) __builtin_prefetch(x + t * row_length + f + kAhead);
        for (int t = 0; t < 16; ++t) r[t] = t < tokens ? load(x + t * row_length + f, lanes) : _mm512_setzero_ps();
        transpose(r);
        if (count == 16) {
            for (int i = 0; i < 16; ++i) _mm512_storeu_ps(tile + (f + i) * stride, r[i]);
        } else {
            for (int i = 0; i < count; ++i) _mm512_storeu_ps(tile + (f + i) * stride, r[i]);
        }
    }
}

template <class T>
void unpack(const float* tile, int64_t stride, int tokens, int64_t features, const float* bias, T* y,
            int64_t row_length) {
    for (int64_t f = 0; f < features; f += 16) {
        const int64_t count = features - f < 16 ? features - f : 16;
        const __mmask16 lanes = first(count);
        __m512 r[16];
        for (int t = 0; t < tokens; ++t) __builtin_prefetch(y + t * row_length + f + kAhead, 1);
        for (int i = 0; i < 16; ++i) r[i] = i < count ? _mm512_loadu_ps(tile + (f + i) * stride) : _mm512_setzero_ps();
        transpose(r);
        const __m512 add = bias ? _mm512_maskz_loadu_ps(lanes, bias + f) : _mm512_setzero_ps();
        if (tokens == 16) {
            for (int t = 0; t < 16; ++t) save(y + t * row_length + f, lanes, _mm512_add_ps(r[t], add));
        } else {
            for (int t = 0; t < tokens; ++t) save(y + t * row_length + f, lanes, _mm512_add_ps(r[t], add));
        }
    }
}

}  // namespace

const Packing kAvx512Packing = {pack<float>, pack<Bf16>, unpack<float>, unpack<Bf16>};

}  // namespace spdf

#endif
