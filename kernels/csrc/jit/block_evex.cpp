// The code of a block for AVX-512: per input one load of x, then one multiply-add with a broadcast value per kept
// entry.
#if defined(__x86_64__)

#include "jit/block.hpp"
#include "jit/evex.hpp"

namespace spdf::jit {

namespace {

constexpr int kXRegister = 31;

// A moving pointer with displacements of one signed byte.
class Window {
public:
    Window(Assembler& assembler, Reg base, int64_t unit) : assembler_(assembler), base_(base), unit_(unit) {
        assembler.add(base, static_cast<int32_t>(128 * unit));
    }
    int reach(int64_t position) {
        if (position - center_ > 127) {
            const int64_t step = (position - center_ + 128) / 256 * 256;
            assembler_.add(base_, static_cast<int32_t>(step * unit_));
            center_ += step;
        }
        return static_cast<int>(position - center_);
    }

private:
    Assembler& assembler_;
    Reg base_;
    int64_t unit_;
    int64_t center_ = 128;
};

}  // namespace

size_t assemble_avx512(uint8_t* out, const Block& block) {
    EvexAssembler a(out);
    constexpr int64_t kEntryBytes = 8, kLine = 64;
    const int64_t lines = block.entries * kEntryBytes / (kLine * block.passes) + 1;
    const int64_t interval = block.entries / lines + 1;
    int32_t prefetched = 0;
    a.address(Reg::r11, block.next_code);
    if (block.partner) a.select_odd_words();
    const size_t next_tile = a.size();
    a.move(Reg::r10, Reg::rdi);
    a.move(Reg::rax, Reg::rsi);
    for (int r = 0; r < block.rows; ++r) {
        if (block.first) {
            a.zero_vector(r);
        } else {
            a.load_vector(r, Reg::rdx, r);
        }
    }
    Window x(a, Reg::r10, 64);
    Window values(a, Reg::rax, 4);
    int64_t used = 0;
    for (int64_t input = 0; input < block.inputs; ++input) {
        uint32_t word = block.words[input];
        if (!word) continue;
        a.load_vector(kXRegister, Reg::r10, x.reach(input));
        if (block.partner && block.partner[input] != input) {
            a.merge_odd_words(kXRegister, Reg::rdi, static_cast<int32_t>(kLine * block.partner[input]));
        }
        for (; word; word &= word - 1) {
            const int row = __builtin_ctz(word), place = values.reach(used);
            if (block.partner) {
                a.dot_bf16_broadcast(row, kXRegister, Reg::rax, place);
            } else {
                a.fma_broadcast(row, kXRegister, Reg::rax, place);
            }
            if (++used % interval == 0) a.prefetch(Reg::r11, kLine * prefetched++);
        }
    }
    for (int r = 0; r < block.rows; ++r) a.store_vector(r, Reg::rdx, r);
    a.add(Reg::r11, kLine * prefetched);
    a.add(Reg::rdi, Reg::r8);
    a.add(Reg::rdx, Reg::r9);
    a.decrement(Reg::rcx);
    a.jump_if_not_zero(next_tile);
    a.return_to_caller();
    return a.size();
}

}  // namespace spdf::jit

#endif
