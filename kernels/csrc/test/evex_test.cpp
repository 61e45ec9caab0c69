// The encoder's bytes against those of the GNU assembler for the same instructions.
#include <vector>

#include "jit/evex.hpp"
#include "test/check.hpp"
#include "test/encoder.hpp"

namespace spdf::test {

namespace {

using jit::EvexAssembler;
using jit::Reg;

template <class Write>
void expect(const char* text, const std::vector<uint8_t>& bytes, Write write) {
    expect_bytes<EvexAssembler>(text, bytes, write);
}

}  // namespace

void test_evex() {
    expect("vmovups zmm31, [r10+64*3]", {0x62, 0x41, 0x7c, 0x48, 0x10, 0x7a, 0x03},
           [](EvexAssembler& a) { a.load_vector(31, Reg::r10, 3); });
    expect("vmovups zmm5, [rdx-64*128]", {0x62, 0xf1, 0x7c, 0x48, 0x10, 0x6a, 0x80},
           [](EvexAssembler& a) { a.load_vector(5, Reg::rdx, -128); });
    expect("vmovups [rdx+64*30], zmm30", {0x62, 0x61, 0x7c, 0x48, 0x11, 0x72, 0x1e},
           [](EvexAssembler& a) { a.store_vector(30, Reg::rdx, 30); });
    expect("vfmadd231ps zmm0, zmm31, [rax+4*127]{1to16}", {0x62, 0xf2, 0x05, 0x50, 0xb8, 0x40, 0x7f},
           [](EvexAssembler& a) { a.fma_broadcast(0, 31, Reg::rax, 127); });
    expect("vfmadd231ps zmm17, zmm31, [r8-4*128]{1to16}", {0x62, 0xc2, 0x05, 0x50, 0xb8, 0x48, 0x80},
           [](EvexAssembler& a) { a.fma_broadcast(17, 31, Reg::r8, -128); });
    expect("vfmadd231ps zmm30, zmm2, [rsi+4]{1to16}", {0x62, 0x62, 0x6d, 0x58, 0xb8, 0x76, 0x01},
           [](EvexAssembler& a) { a.fma_broadcast(30, 2, Reg::rsi, 1); });
    expect("vdpbf16ps zmm9, zmm31, [rax+4]{1to16}", {0x62, 0x72, 0x06, 0x50, 0x52, 0x48, 0x01},
           [](EvexAssembler& a) { a.dot_bf16_broadcast(9, 31, Reg::rax, 1); });
    expect("vdpbf16ps zmm25, zmm14, [r9-4*2]{1to16}", {0x62, 0x42, 0x0e, 0x58, 0x52, 0x49, 0xfe},
           [](EvexAssembler& a) { a.dot_bf16_broadcast(25, 14, Reg::r9, -2); });
    expect("vmovdqu16 zmm31{k1}, [rdi+0x12340]", {0x62, 0x61, 0xff, 0x49, 0x6f, 0xbf, 0x40, 0x23, 0x01, 0x00},
           [](EvexAssembler& a) { a.merge_odd_words(31, Reg::rdi, 0x12340); });
    expect("mov eax, 0xaaaaaaaa; kmovd k1, eax", {0xb8, 0xaa, 0xaa, 0xaa, 0xaa, 0xc5, 0xfb, 0x92, 0xc8},
           [](EvexAssembler& a) { a.select_odd_words(); });
    expect("vpxord zmm0, zmm0, zmm0", {0x62, 0xf1, 0x7d, 0x48, 0xef, 0xc0}, [](EvexAssembler& a) { a.zero_vector(0); });
    expect("vpxord zmm13, zmm13, zmm13", {0x62, 0x51, 0x15, 0x48, 0xef, 0xed}, [](EvexAssembler& a) { a.zero_vector(13); });
    expect("vpxord zmm30, zmm30, zmm30", {0x62, 0x01, 0x0d, 0x40, 0xef, 0xf6}, [](EvexAssembler& a) { a.zero_vector(30); });
    expect("mov r10, rdi", {0x49, 0x89, 0xfa}, [](EvexAssembler& a) { a.move(Reg::r10, Reg::rdi); });
    expect("mov rax, rsi", {0x48, 0x89, 0xf0}, [](EvexAssembler& a) { a.move(Reg::rax, Reg::rsi); });
    expect("add rdi, r8", {0x4c, 0x01, 0xc7}, [](EvexAssembler& a) { a.add(Reg::rdi, Reg::r8); });
    expect("add rdx, r9", {0x4c, 0x01, 0xca}, [](EvexAssembler& a) { a.add(Reg::rdx, Reg::r9); });
    expect("add r10, 0x12345678", {0x49, 0x81, 0xc2, 0x78, 0x56, 0x34, 0x12},
           [](EvexAssembler& a) { a.add(Reg::r10, 0x12345678); });
    expect("dec rcx", {0x48, 0xff, 0xc9}, [](EvexAssembler& a) { a.decrement(Reg::rcx); });
    expect("dec r11", {0x49, 0xff, 0xcb}, [](EvexAssembler& a) { a.decrement(Reg::r11); });
    expect("lea r11, [rip+0x100]", {0x4c, 0x8d, 0x1d, 0x00, 0x01, 0x00, 0x00},
           [](EvexAssembler& a) { a.address(Reg::r11, 0x107); });
    expect("prefetcht1 [r11+0x12340]", {0x41, 0x0f, 0x18, 0x93, 0x40, 0x23, 0x01, 0x00},
           [](EvexAssembler& a) { a.prefetch(Reg::r11, 0x12340); });
    expect("vzeroupper; ret", {0xc5, 0xf8, 0x77, 0xc3}, [](EvexAssembler& a) { a.return_to_caller(); });
    expect("ret-less loop: dec rcx; jnz back", {0x48, 0xff, 0xc9, 0x0f, 0x85, 0xf7, 0xff, 0xff, 0xff}, [](EvexAssembler& a) {
        a.decrement(Reg::rcx);
        a.jump_if_not_zero(0);
    });
}

}  // namespace spdf::test
