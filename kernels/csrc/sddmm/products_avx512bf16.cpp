#if defined(__x86_64__)

#include "sddmm/products_avx512.hpp"

namespace spdf::sddmm {

namespace {

struct Bf16Pairs {
    static constexpr bool kSumsAbreast = true;  // an addition takes 6 cycles on Zen 4, in fp32 4
    // Written out, for GCC 12 loads b by an instruction of its own: half as many products fit the reorder buffer.
    static inline __m512 add_product(__m512 sum, __m512 a, const float* b) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "m"(*reinterpret_cast<const __m512*>(b)));
        return sum;
    }
};

}  // namespace

const Products kAvx512Bf16Products = avx512_products<Bf16Pairs>();

}  // namespace spdf::sddmm

#endif
