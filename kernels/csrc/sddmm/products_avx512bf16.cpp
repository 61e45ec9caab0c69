#if defined(__x86_64__)

#include "sddmm/products_avx512.hpp"

namespace spdf::sddmm {

namespace {

struct Bf16Pairs {
    static constexpr bool kSumsAbreast = true;  // its latency on Zen 4 is 6 cycles, that of an fp32 FMA 4
    // Inline assembly, because GCC 12 loads b in a separate instruction, and half as many products then fit the reorder
    // buffer.
    static inline __m512 add_product(__m512 sum, __m512 a, const float* b) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "m"(*reinterpret_cast<const __m512*>(b)));
        return sum;
    }
};

}  // namespace

const Products kAvx512Bf16Products = avx512_products<Bf16Pairs>();

}  // namespace spdf::sddmm

#endif
