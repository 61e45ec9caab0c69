// Encoder for the few AVX2 and FMA instructions of generated products.
//
// VEX layout: C4 P0 P1 opcode ModRM disp, or C5 P opcode ModRM disp where the map is 0F and no operand but `reg` is a
// high register. A displacement takes one byte where it fits, else four; unlike in EVEX it counts bytes. Intel SDM
// volume 2, section 2.3.
#pragma once

#include <cstddef>
#include <cstdint>

#include "jit/assembler.hpp"

namespace spdf::jit {

// Vector registers are ymm0 to ymm15, displacements are in bytes.
class VexAssembler : public Assembler {
public:
    using Assembler::Assembler;

    // ymm `to` = 8 floats at [base + disp]
    void load_vector(int to, Reg base, int32_t disp) {
        prefix(kMap0F, kNone, to, 0, static_cast<int>(base));
        memory(0x10, to, base, disp);
    }
    // 8 floats at [base + disp] = ymm `from`
    void store_vector(int from, Reg base, int32_t disp) {
        prefix(kMap0F, kNone, from, 0, static_cast<int>(base));
        memory(0x11, from, base, disp);
    }
    // ymm `to` = the float at [base + disp], in all lanes
    void broadcast(int to, Reg base, int32_t disp) {
        prefix(kMap0F38, k66, to, 0, static_cast<int>(base));
        memory(0x18, to, base, disp);
    }
    // ymm sum += ymm left * ymm right
    void fma(int sum, int left, int right) {
        prefix(kMap0F38, k66, sum, left, right);
        bytes({0xb8, registers(sum, right)});
    }
    // ymm sum += ymm factor * 8 floats at [base + disp]
    void fma_memory(int sum, int factor, Reg base, int32_t disp) {
        prefix(kMap0F38, k66, sum, factor, static_cast<int>(base));
        memory(0xb8, sum, base, disp);
    }
    // ymm r = 0
    void zero_vector(int r) {
        prefix(kMap0F, kNone, r, r, r);
        bytes({0x57, registers(r, r)});
    }

private:
    enum Map : uint8_t { kMap0F = 1, kMap0F38 = 2 };
    enum Prefix : uint8_t { kNone = 0, k66 = 1 };

    static uint8_t registers(int reg, int rm) { return static_cast<uint8_t>(0xc0 | (reg & 7) << 3 | (rm & 7)); }

    // Extension bits R (of `reg`) and B (of `rm`) and the number `second` are stored inverted; X is not used; L = 256
    // bits.
    void prefix(Map map, Prefix pp, int reg, int second, int rm) {
        const uint8_t not_r = static_cast<uint8_t>((~reg >> 3 & 1) << 7);
        const uint8_t rest = static_cast<uint8_t>((~second & 15) << 3 | 1 << 2 | pp);
        if (map == kMap0F && rm < 8) {
            bytes({0xc5, static_cast<uint8_t>(not_r | rest)});
        } else {
            bytes({0xc4, static_cast<uint8_t>(not_r | 1 << 6 | (~rm >> 3 & 1) << 5 | map), rest});
        }
    }

    void memory(uint8_t opcode, int reg, Reg base, int32_t disp) {
        const uint8_t fields = static_cast<uint8_t>((reg & 7) << 3 | (static_cast<int>(base) & 7));
        if (disp >= -128 && disp <= 127) {
            bytes({opcode, static_cast<uint8_t>(0x40 | fields), static_cast<uint8_t>(disp)});
        } else {
            bytes({opcode, static_cast<uint8_t>(0x80 | fields)});
            word(disp);
        }
    }
};

}  // namespace spdf::jit
