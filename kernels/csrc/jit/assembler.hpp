// The common part of the encoders of AVX-512 and AVX2 code: instructions on general registers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spdf::jit {

// General registers, numbered as in ModRM. rsp (4), rbp (5), r12, r13 need other address forms and are not offered.
enum class Reg : uint8_t { rax = 0, rcx = 1, rdx = 2, rsi = 6, rdi = 7, r8 = 8, r9 = 9, r10 = 10, r11 = 11 };

// Writes at `out`. With out == nullptr it only counts, so the same code measures and writes.
class Assembler {
public:
    explicit Assembler(uint8_t* out) : out_(out) {}

    size_t size() const { return size_; }

    void move(Reg to, Reg from) { bytes({rex_w(from, to), 0x89, modrm_registers(from, to)}); }
    void add(Reg to, Reg from) { bytes({rex_w(from, to), 0x01, modrm_registers(from, to)}); }
    void add(Reg to, int32_t constant) {
        bytes({rex_w(Reg::rax, to), 0x81, modrm_registers(Reg::rax, to)});
        word(constant);
    }
    void decrement(Reg r) { bytes({rex_w(Reg::rax, r), 0xff, static_cast<uint8_t>(modrm_registers(Reg::rax, r) | 1 << 3)}); }
    // Jumps back to `target`, an earlier size(), unless the last result was zero.
    void jump_if_not_zero(size_t target) {
        bytes({0x0f, 0x85});
        word(static_cast<int32_t>(static_cast<int64_t>(target) - static_cast<int64_t>(size_ + 4)));
    }
    // to = address of the byte at position `target`, counted like size(). It may be outside the code written here.
    void address(Reg to, int64_t target) {
        bytes({rex_w(to, Reg::rax), 0x8d, static_cast<uint8_t>((static_cast<int>(to) & 7) << 3 | 5)});
        word(static_cast<int32_t>(target - static_cast<int64_t>(size_ + 4)));
    }
    // Prefetches the line at [base + disp] into L2; an invalid address has no effect.
    void prefetch(Reg base, int32_t disp) {
        bytes({static_cast<uint8_t>(0x40 | static_cast<int>(base) >> 3), 0x0f, 0x18,
               static_cast<uint8_t>(0x80 | 2 << 3 | (static_cast<int>(base) & 7))});
        word(disp);
    }
    void return_to_caller() { bytes({0xc5, 0xf8, 0x77, 0xc3}); }  // vzeroupper; ret

protected:
    static uint8_t rex_w(Reg reg, Reg rm) {
        return static_cast<uint8_t>(0x48 | (static_cast<int>(reg) >> 3) << 2 | static_cast<int>(rm) >> 3);
    }
    static uint8_t modrm_registers(Reg reg, Reg rm) {
        return static_cast<uint8_t>(0xc0 | (static_cast<int>(reg) & 7) << 3 | (static_cast<int>(rm) & 7));
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
