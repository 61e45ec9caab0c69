#if defined(__x86_64__)

#include "sddmm/pack_pairs.hpp"

#include <immintrin.h>

#include "pack/ahead.hpp"
#include "pack/transpose_avx512.hpp"

namespace spdf::sddmm {

namespace {

// Up to 32 features of up to 32 rows. Each line is read whole; the even features are packed first, then the odd ones.
// `whole`: 32 features and 32 rows, so that the compiler knows every count.
template <bool whole>
void pack_tile(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* panel, int64_t stride) {
    constexpr __mmask32 kHigh = 0xaaaaaaaa;
    const __mmask32 lanes = static_cast<__mmask32>((int64_t{1} << features) - 1);
    const auto row = [&](int t) {
        if constexpr (whole) return _mm512_loadu_si512(x + t * row_length);
        return t < tokens ? _mm512_maskz_loadu_epi16(lanes, x + t * row_length) : _mm512_setzero_si512();
    };
    __m512 r[16];
    for (int t = 0; t < 16; ++t) {
        r[t] = _mm512_castsi512_ps(_mm512_mask_blend_epi16(kHigh, row(t), _mm512_slli_epi32(row(t + 16), 16)));
    }
    transpose(r);
    for (int i = 0; i < (whole ? 32 : features); i += 2) _mm512_storeu_ps(panel + i * stride, r[i / 2]);
    for (int t = 0; t < 16; ++t) {
        r[t] = _mm512_castsi512_ps(_mm512_mask_blend_epi16(kHigh, _mm512_srli_epi32(row(t), 16), row(t + 16)));
    }
    transpose(r);
    for (int i = 1; i < (whole ? 32 : features); i += 2) _mm512_storeu_ps(panel + i * stride, r[i / 2]);
}

}  // namespace

void pack_pairs_avx512(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* panel, int64_t stride) {
    for (int64_t f = 0; f < features; f += 32) {
        const Bf16* next = ahead(x, 32 * row_length, features, f, 128);
        for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length, 0, 2);
        const int64_t count = features - f < 32 ? features - f : 32;
        const auto pack = tokens == 32 && count == 32 ? pack_tile<true> : pack_tile<false>;
        pack(x + f, row_length, tokens, count, panel + f * stride, stride);
    }
}

}  // namespace spdf::sddmm

#endif
