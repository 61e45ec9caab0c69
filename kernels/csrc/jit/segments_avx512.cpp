#include "jit/segments.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

namespace spdf::jit {

namespace {

inline void copy(const float* from, __mmask16 lanes, float* to) {
    _mm512_mask_storeu_ps(to, lanes, _mm512_maskz_loadu_ps(lanes, from));
}
inline void copy(const Bf16* from, __mmask16 lanes, float* to) {
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from)), 16);
    _mm512_mask_storeu_ps(to, lanes, _mm512_castsi512_ps(bits));
}

template <class T>
void copy_all(const T* from, const uint8_t* counts, int64_t blocks, float** to) {
    for (int64_t b = 0; b < blocks; ++b) {
        const uint32_t lanes = (1u << counts[b]) - 1;  // counts stop at 31
        copy(from, static_cast<__mmask16>(lanes), to[b]);
        if (counts[b] > 16) copy(from + 16, static_cast<__mmask16>(lanes >> 16), to[b] + 16);
        from += counts[b];
        to[b] += counts[b];
    }
}

}  // namespace

void copy_segments(const float* from, const uint8_t* counts, int64_t blocks, float** to) {
    copy_all(from, counts, blocks, to);
}
void copy_segments(const Bf16* from, const uint8_t* counts, int64_t blocks, float** to) {
    copy_all(from, counts, blocks, to);
}

}  // namespace spdf::jit

#endif
