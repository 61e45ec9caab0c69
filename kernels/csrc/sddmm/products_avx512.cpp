#if defined(__x86_64__)

#include "sddmm/products_avx512.hpp"

namespace spdf::sddmm {

namespace {

struct Float32 {
    static constexpr bool kSumsAbreast = false;
    static inline __m512 add_product(__m512 sum, __m512 a, const float* b) {
        return _mm512_fmadd_ps(a, _mm512_load_ps(b), sum);
    }
};

}  // namespace

const Products kAvx512Products = avx512_products<Float32>();

}  // namespace spdf::sddmm

#endif
