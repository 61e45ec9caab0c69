// Products in plain C++, which the compiler maps to the vectors of its target.
#pragma once

#include "sddmm/products.hpp"

namespace spdf::sddmm {

namespace {

// The vector type of GCC and Clang: one AVX2 register, or several narrower ones.
typedef float Lanes __attribute__((vector_size(32), may_alias));

template <int vectors>
struct Kernel {
    static constexpr int kVectors = vectors;
    static constexpr int kLanes = 8;

    struct Row {
        const float* y;
        explicit Row(const float* row) : y(row) {}
    };

    // Sums of `size` entries in separate lanes, folded at the end in a fixed order.
    template <int size>
    static void group(const uint8_t* columns, const Row& row, const float* x, float* to) {
        Lanes sums[size];
        const float* x_of[size];
#pragma GCC unroll 8
        for (int i = 0; i < size; ++i) {
            sums[i] = Lanes{};
            x_of[i] = x + columns[i] * (vectors * kChunkFloats);
        }
        for (int t = 0; t < vectors * kChunkFloats; t += kLanes) {
            const Lanes factor = *reinterpret_cast<const Lanes*>(row.y + t);
#pragma GCC unroll 8
            for (int i = 0; i < size; ++i) sums[i] += factor * *reinterpret_cast<const Lanes*>(x_of[i] + t);
        }
        for (int i = 0; i < size; ++i) {
            const Lanes s = sums[i];
            to[i] += ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
        }
    }
};

constexpr Products kPortable = {run_block<Kernel<8>>, run_block<Kernel<4>>, run_block<Kernel<2>>, run_block<Kernel<1>>};

}  // namespace

}  // namespace spdf::sddmm
