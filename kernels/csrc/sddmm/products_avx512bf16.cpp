#if defined(__x86_64__)

#include "sddmm/products_avx512.hpp"

namespace spdf::sddmm {

namespace {

struct Bf16Pairs {
    static constexpr bool kSumsAbreast = true;  // an addition takes 6 cycles on Zen 4, in fp32 4
    static inline __m512 add_product(__m512 sum, __m512 a, __m512 b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
};

}  // namespace

const Products kAvx512Bf16Products = avx512_products<Bf16Pairs>();

}  // namespace spdf::sddmm

#endif
