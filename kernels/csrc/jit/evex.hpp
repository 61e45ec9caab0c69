// Encoder for the few x86-64 and AVX-512 instructions that generated products consist of.
//
// EVEX layout: 62 P0 P1 P2 opcode ModRM [disp8], where disp8 counts in units of the memory operand: 64 bytes for a whole
// vector, 4 for one broadcast float. Intel SDM volume 2, section 2.7. Every vector instruction with memory here uses
// base + disp8 addressing, so it is seven bytes long.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spdf::jit {

// General registers, numbered as in ModRM. rsp (4), rbp (5), r12, r13 need other address forms and are not offered.
enum class Reg : uint8_t { rax = 0, rcx = 1, rdx = 2, rsi = 6, rdi = 7, r8 = 8, r9 = 9, r10 = 10, r11 = 11 };

// Writes at `out`; with out == nullptr it only counts, so one piece of code both measures and writes.
class Assembler {
public:
    explicit Assembler(uint8_t* out) : out_(out) {}

    size_t size() const { return size_; }

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

    void move(Reg to, Reg from) { bytes({rex_w(from, to), 0x89, modrm_registers(from, to)}); }
    void add(Reg to, Reg from) { bytes({rex_w(from, to), 0x01, modrm_registers(from, to)}); }
    void add(Reg to, int32_t constant) {
        bytes({rex_w(Reg::rax, to), 0x81, modrm_registers(Reg::rax, to)});
        word(constant);
    }
    void decrement(Reg r) { bytes({rex_w(Reg::rax, r), 0xff, static_cast<uint8_t>(modrm_registers(Reg::rax, r) | 1 << 3)}); }
    // Back to `target`, a former size(), unless the last result was zero.
    void jump_if_not_zero(size_t target) {
        bytes({0x0f, 0x85});
        word(static_cast<int32_t>(static_cast<int64_t>(target) - static_cast<int64_t>(size_ + 4)));
    }
    // to = address of the byte at `target`, a position counted like size(); it may lie outside the code written here.
    void address(Reg to, int64_t target) {
        bytes({rex_w(to, Reg::rax), 0x8d, static_cast<uint8_t>((static_cast<int>(to) & 7) << 3 | 5)});
        word(static_cast<int32_t>(target - static_cast<int64_t>(size_ + 4)));
    }
    // Wishes for the line at [base + disp] in the second-level cache; an address without memory behind it does no harm.
    void prefetch(Reg base, int32_t disp) {
        bytes({static_cast<uint8_t>(0x40 | static_cast<int>(base) >> 3), 0x0f, 0x18,
               static_cast<uint8_t>(0x80 | 2 << 3 | (static_cast<int>(base) & 7))});
        word(disp);
    }
    void return_to_caller() { bytes({0xc5, 0xf8, 0x77, 0xc3}); }  // vzeroupper; ret

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
    static uint8_t rex_w(Reg reg, Reg rm) {
        return static_cast<uint8_t>(0x48 | (static_cast<int>(reg) >> 3) << 2 | static_cast<int>(rm) >> 3);
    }
    static uint8_t modrm_registers(Reg reg, Reg rm) {
        return static_cast<uint8_t>(0xc0 | (static_cast<int>(reg) & 7) << 3 | (static_cast<int>(rm) & 7));
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

    template <size_t n>
    void bytes(const uint8_t (&values)[n]) {
        if (out_) {
            for (size_t i = 0; i < n; ++i) out_[size_ + i] = values[i];
        }
        size_ += n;
    }
    void word(int32_t value) {
        if (out_) __builtin_memcpy(out_ + size_, &value, 4);
        size_ += 4;
    }

    uint8_t* out_;
    size_t size_ = 0;
};

}  // namespace spdf::jit
