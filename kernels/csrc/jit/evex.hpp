// Encoder for the few AVX-512 instructions of generated products.
//
// EVEX layout: 62 P0 P1 P2 opcode ModRM [disp8], where disp8 counts in units of the memory operand: 64 bytes for a
// whole vector, 4 for one broadcast float. Intel SDM volume 2, section 2.7. Every vector instruction with memory here
// uses base + disp8 addressing, so it is seven bytes long.
#pragma once

#include <cstddef>
#include <cstdint>

#include "jit/assembler.hpp"

namespace spdf::jit {

class EvexAssembler : public Assembler {
public:
    using Assembler::Assembler;

    // zmm `to` = 16 floats at [base + 64 * disp]
    void load_vector(int to, Reg base, int disp) { evex_memory(kMap0F, kNone, 0x10, to, 0, base, disp, false); }
    // 16 floats at [base + 64 * disp] = zmm `from`
    void store_vector(int from, Reg base, int disp) { evex_memory(kMap0F, kNone, 0x11, from, 0, base, disp, false); }
    // zmm sum += zmm factor * float at [base + 4 * disp], in all lanes
    void fma_broadcast(int sum, int factor, Reg base, int disp) {
        evex_memory(kMap0F38, k66, 0xb8, sum, factor, base, disp, true);
    }
    // zmm sum += products of bf16 pairs: zmm factor with the pair at [base + 4 * disp], in all lanes
    void dot_bf16_broadcast(int sum, int factor, Reg base, int disp) {
        evex_memory(kMap0F38, kF3, 0x52, sum, factor, base, disp, true);
    }
    // odd 16-bit words of zmm `to` = those at [base + displacement], even ones stay; after select_odd_words
    void merge_odd_words(int to, Reg base, int32_t displacement) {
        bytes({0x62, p0(kMap0F, to, static_cast<int>(base)), static_cast<uint8_t>(0x80 | p1(kF2, 0)),
               static_cast<uint8_t>(p2(0, false) | 1), 0x6f,
               static_cast<uint8_t>(0x80 | (to & 7) << 3 | (static_cast<int>(base) & 7))});
        word(displacement);
    }
    // Sets the mask k1 that merge_odd_words takes; rax is lost.
    void select_odd_words() {
        bytes({0xb8, 0xaa, 0xaa, 0xaa, 0xaa});  // mov eax, 0xaaaaaaaa
        bytes({0xc5, 0xfb, 0x92, 0xc8});        // kmovd k1, eax
    }
    // zmm r = 0
    void zero_vector(int r) {
        bytes({0x62, p0(kMap0F, r, r), p1(k66, r), p2(r, false), 0xef, static_cast<uint8_t>(0xc0 | (r & 7) << 3 | (r & 7))});
    }

private:
    enum Map : uint8_t { kMap0F = 1, kMap0F38 = 2 };
    enum Prefix : uint8_t { kNone = 0, k66 = 1, kF3 = 2, kF2 = 3 };

    // Register extension bits are stored inverted: R and R' extend `reg`, X and B extend the register operand `rm`.
    static uint8_t p0(Map map, int reg, int rm) {
        return static_cast<uint8_t>((~reg >> 3 & 1) << 7 | (~rm >> 4 & 1) << 6 | (~rm >> 3 & 1) << 5 |
                                    (~reg >> 4 & 1) << 4 | map);
    }
    static uint8_t p1(Prefix prefix, int second) { return static_cast<uint8_t>((~second & 15) << 3 | 1 << 2 | prefix); }
    static uint8_t p2(int second, bool broadcast) {
        return static_cast<uint8_t>(2 << 5 | (broadcast ? 1 : 0) << 4 | (~second >> 4 & 1) << 3);
    }

    void evex_memory(Map map, Prefix prefix, uint8_t opcode, int reg, int second, Reg base, int disp, bool broadcast) {
        if (out_) {
            uint8_t* at = out_ + size_;
            at[0] = 0x62;
            at[1] = p0(map, reg, static_cast<int>(base));  // general registers stop at 15, so X stays 1
            at[2] = p1(prefix, second);
            at[3] = p2(second, broadcast);
            at[4] = opcode;
            at[5] = static_cast<uint8_t>(0x40 | (reg & 7) << 3 | (static_cast<int>(base) & 7));  // mod 01: disp8 follows
            at[6] = static_cast<uint8_t>(disp);
        }
        size_ += 7;
    }
};

}  // namespace spdf::jit
