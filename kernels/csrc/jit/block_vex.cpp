// The code of a block for AVX2. An FMA of AVX2 cannot broadcast an operand from memory, so each value is broadcast into
// a register once, for two vectors of 8 tokens. Groups of 6 rows process the block's inputs one group after the other,
// with 12 accumulators. An input that only one row of a group keeps is a memory operand. Any other input is loaded
// first.
//
// Values are ordered by input over all rows of the block, as in the code for AVX-512. A group uses those of its rows.
#if defined(__x86_64__)

#include "jit/block.hpp"
#include "jit/vex.hpp"

namespace spdf::jit {

namespace {

constexpr int kGroupRows = 6;
constexpr int kXRegister = 2 * kGroupRows, kValueRegister = kXRegister + 2;
constexpr int32_t kTileBytes = 64, kVectorBytes = 32;

// A moving pointer: if a displacement does not fit a signed byte, the pointer is advanced.
class Window {
public:
    Window(Assembler& assembler, Reg base) : assembler_(assembler), base_(base) {}
    // The displacement of `offset`, with `length` further bytes within a signed byte. `offset` must not decrease from
    // call to call.
    int32_t reach(int64_t offset, int64_t length) {
        if (offset + length - center_ > 128) {
            assembler_.add(base_, static_cast<int32_t>(offset + 128 - center_));
            center_ = offset + 128;
        }
        return static_cast<int32_t>(offset - center_);
    }

private:
    Assembler& assembler_;
    Reg base_;
    int64_t center_ = 0;
};

}  // namespace

size_t assemble_avx2(uint8_t* out, const Block& block) {
    VexAssembler a(out);
    const int groups = (block.rows + kGroupRows - 1) / kGroupRows;
    constexpr int64_t kEntryBytes = 20, kLine = 64;  // of code per entry, including its share of the loads of x
    const int64_t lines = block.entries * kEntryBytes / (kLine * block.passes) + 1;
    const int64_t interval = block.entries / lines + 1;
    int32_t prefetched = 0;
    int64_t done = 0;
    a.address(Reg::r11, block.next_code);
    a.move(Reg::r10, Reg::rcx);
    const size_t next_tile = a.size();
    for (int g = 0; g < groups; ++g) {
        const int begin = block.rows * g / groups, end = block.rows * (g + 1) / groups;
        const uint32_t before = (1u << begin) - 1, below_end = (1u << end) - 1;
        for (int v = 0; v < 2 * (end - begin); ++v) {
            if (block.first) {
                a.zero_vector(v);
            } else {
                a.load_vector(v, Reg::rdx, begin * kTileBytes + v * kVectorBytes);
            }
        }
        a.move(Reg::rcx, Reg::rdi);
        a.move(Reg::rax, Reg::rsi);
        Window x(a, Reg::rcx);
        Window values(a, Reg::rax);
        int64_t used = 0;  // values of earlier inputs
        for (int64_t input = 0; input < block.inputs; ++input) {
            const uint32_t word = block.words[input];
            const uint32_t own = word & below_end & ~before;
            int64_t place = used + __builtin_popcount(word & before);
            used += __builtin_popcount(word);
            if (!own) continue;
            const int32_t at = x.reach(input * kTileBytes, kTileBytes);
            const bool alone = (own & (own - 1)) == 0;
            if (!alone) {
                a.load_vector(kXRegister, Reg::rcx, at);
                a.load_vector(kXRegister + 1, Reg::rcx, at + kVectorBytes);
            }
            for (uint32_t rows = own; rows; rows &= rows - 1, ++place) {
                const int sum = 2 * (__builtin_ctz(rows) - begin);
                a.broadcast(kValueRegister, Reg::rax, values.reach(4 * place, 4));
                if (alone) {
                    a.fma_memory(sum, kValueRegister, Reg::rcx, at);
                    a.fma_memory(sum + 1, kValueRegister, Reg::rcx, at + kVectorBytes);
                } else {
                    a.fma(sum, kValueRegister, kXRegister);
                    a.fma(sum + 1, kValueRegister, kXRegister + 1);
                }
                if (++done % interval == 0) a.prefetch(Reg::r11, kLine * prefetched++);
            }
        }
        for (int v = 0; v < 2 * (end - begin); ++v) {
            a.store_vector(v, Reg::rdx, begin * kTileBytes + v * kVectorBytes);
        }
    }
    a.add(Reg::r11, kLine * prefetched);
    a.add(Reg::rdi, Reg::r8);
    a.add(Reg::rdx, Reg::r9);
    a.decrement(Reg::r10);
    a.jump_if_not_zero(next_tile);
    a.return_to_caller();
    return a.size();
}

}  // namespace spdf::jit

#endif
