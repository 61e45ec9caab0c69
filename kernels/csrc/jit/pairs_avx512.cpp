#include "jit/pairs.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "pack/ahead.hpp"
#include "pack/transpose_avx512.hpp"

namespace spdf::jit {

namespace {

// Pairs are chosen within a window of this many pairs, whose x fits L1 although it is not read in order.
constexpr int64_t kWindow = 384;

// Set bits of each 32-bit lane.
inline __m512i popcount(__m512i words) {
    const __m512i bits_of_nibble = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i low = _mm512_shuffle_epi8(bits_of_nibble, _mm512_and_si512(words, nibble));
    const __m512i high = _mm512_shuffle_epi8(bits_of_nibble, _mm512_and_si512(_mm512_srli_epi16(words, 4), nibble));
    const __m512i of_bytes = _mm512_add_epi8(low, high);
    return _mm512_madd_epi16(_mm512_maddubs_epi16(of_bytes, _mm512_set1_epi8(1)), _mm512_set1_epi16(1));
}

// Greedy choice by the number of common rows, from the largest to zero.
void match_window(const uint32_t* rows, int64_t pairs, int64_t first, uint16_t* partner) {
    alignas(64) uint32_t odd[kWindow] = {};
    alignas(64) uint8_t common[kWindow][kWindow];  // rows that keep both: even input, odd input
    const int64_t vectors = (pairs + 63) / 64;
    for (int64_t j = 0; j < pairs; ++j) odd[j] = rows[2 * j + 1];
    int level = 0;
    for (int64_t i = 0; i < pairs; ++i) {
        const __m512i even = _mm512_set1_epi32(static_cast<int>(rows[2 * i]));
        __m512i most = _mm512_setzero_si512();
        for (int64_t j = 0; j < vectors * 64; j += 16) {
            const __m512i count = popcount(_mm512_and_si512(even, _mm512_load_si512(odd + j)));
            most = _mm512_max_epi32(most, count);
            _mm_store_si128(reinterpret_cast<__m128i*>(common[i] + j), _mm512_cvtepi32_epi8(count));
        }
        level = std::max(level, _mm512_reduce_max_epi32(most));
    }
    uint64_t free[kWindow / 64] = {};
    for (int64_t j = 0; j < pairs; ++j) free[j / 64] |= uint64_t{1} << (j % 64);
    int64_t open[kWindow], left = pairs;
    for (int64_t i = 0; i < pairs; ++i) open[i] = i;
    for (; left; --level) {
        const __m512i wanted = _mm512_set1_epi8(static_cast<char>(level));
        int64_t still = 0;
        for (int64_t k = 0; k < left; ++k) {
            const int64_t i = open[k];
            int64_t found = -1;
            for (int64_t v = 0; v < vectors && found < 0; ++v) {
                const __m512i counts = _mm512_load_si512(common[i] + v * 64);
                const uint64_t fitting = _mm512_cmpeq_epi8_mask(counts, wanted) & free[v];
                if (fitting) {
                    free[v] &= ~(fitting & (~fitting + 1));
                    found = v * 64 + __builtin_ctzll(fitting);
                }
            }
            if (found < 0) {
                open[still++] = i;
            } else {
                partner[i] = static_cast<uint16_t>(first + found);
            }
        }
        left = still;
    }
}

}  // namespace

void match_pairs(const uint32_t* rows, int64_t pairs, uint16_t* partner) {
    const int64_t windows = (pairs + kWindow - 1) / kWindow;
    for (int64_t w = 0; w < windows; ++w) {
        const int64_t first = pairs * w / windows, end = pairs * (w + 1) / windows;
        match_window(rows + 2 * first, end - first, first, partner + first);
    }
}

bool pack_pairs(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* tile) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __mmask32 bad = 0;
    for (int64_t f = 0; f < features; f += 32) {
        const int64_t count = features - f < 32 ? features - f : 32;
        const __mmask32 lanes = count == 32 ? ~__mmask32{0} : static_cast<__mmask32>((1u << count) - 1);
        const Bf16* next = ahead(x, 16 * row_length, features, f, 128);
        for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length, 0, 2);
        __m512 r[16];
        for (int t = 0; t < 16; ++t) {
            const __m512i pairs = t < tokens ? _mm512_maskz_loadu_epi16(lanes, x + t * row_length + f) : _mm512_setzero_si512();
            bad |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(pairs, exponent), exponent);
            r[t] = _mm512_castsi512_ps(pairs);
        }
        transpose(r);
        float* to = tile + f / 2 * 16;
        const int64_t vectors = (count + 1) / 2;
        if (vectors == 16) {
            for (int i = 0; i < 16; ++i) _mm512_storeu_ps(to + i * 16, r[i]);
        } else {
            for (int i = 0; i < vectors; ++i) _mm512_storeu_ps(to + i * 16, r[i]);
        }
    }
    return bad == 0;
}

}  // namespace spdf::jit

#endif
