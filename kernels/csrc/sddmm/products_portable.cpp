// Products in plain C++, vectorised by the compiler for whatever it targets.
#include "sddmm/products.hpp"

namespace spdf::sddmm {

namespace {

template <int vectors>
struct Kernel {
    static constexpr int kVectors = vectors;
    static constexpr int kLanes = 8;

    // Sums of `size` entries in lanes side by side, folded at the end in a fixed order.
    template <int size>
    static void group(const uint8_t* columns, const float* y, const float* x, float* to) {
        float lanes[size][kLanes] = {};
        const float* x_of[size];
        for (int i = 0; i < size; ++i) x_of[i] = x + columns[i] * (vectors * kChunkFloats);
        for (int t = 0; t < vectors * kChunkFloats; t += kLanes) {
            for (int i = 0; i < size; ++i) {
                for (int l = 0; l < kLanes; ++l) lanes[i][l] += y[t + l] * x_of[i][t + l];
            }
        }
        for (int i = 0; i < size; ++i) {
            const float* s = lanes[i];
            to[i] += ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
        }
    }
};

}  // namespace

const Products kPortableProducts = {run_block<Kernel<8>>, run_block<Kernel<4>>, run_block<Kernel<2>>,
                                    run_block<Kernel<1>>};

}  // namespace spdf::sddmm
