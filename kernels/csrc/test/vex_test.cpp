// The encoder's bytes against those of the GNU assembler for the same instructions.
#include <vector>

#include "jit/vex.hpp"
#include "test/check.hpp"
#include "test/encoder.hpp"

namespace spdf::test {

namespace {

using jit::Reg;
using jit::VexAssembler;

template <class Write>
void expect(const char* text, const std::vector<uint8_t>& bytes, Write write) {
    expect_bytes<VexAssembler>(text, bytes, write);
}

}  // namespace

void test_vex() {
    expect("vmovups ymm0, [rcx-128]", {0xc5, 0xfc, 0x10, 0x41, 0x80},
           [](VexAssembler& a) { a.load_vector(0, Reg::rcx, -128); });
    expect("vmovups ymm13, [rcx+96]", {0xc5, 0x7c, 0x10, 0x69, 0x60},
           [](VexAssembler& a) { a.load_vector(13, Reg::rcx, 96); });
    expect("vmovups ymm7, [rdx+0x12340]", {0xc5, 0xfc, 0x10, 0xba, 0x40, 0x23, 0x01, 0x00},
           [](VexAssembler& a) { a.load_vector(7, Reg::rdx, 0x12340); });
    expect("vmovups ymm2, [r9+32]", {0xc4, 0xc1, 0x7c, 0x10, 0x51, 0x20},
           [](VexAssembler& a) { a.load_vector(2, Reg::r9, 32); });
    expect("vmovups [rdx+64], ymm11", {0xc5, 0x7c, 0x11, 0x5a, 0x40},
           [](VexAssembler& a) { a.store_vector(11, Reg::rdx, 64); });
    expect("vmovups [rdx+1888], ymm3", {0xc5, 0xfc, 0x11, 0x9a, 0x60, 0x07, 0x00, 0x00},
           [](VexAssembler& a) { a.store_vector(3, Reg::rdx, 1888); });
    expect("vbroadcastss ymm14, dword ptr [rax+4]", {0xc4, 0x62, 0x7d, 0x18, 0x70, 0x04},
           [](VexAssembler& a) { a.broadcast(14, Reg::rax, 4); });
    expect("vbroadcastss ymm3, dword ptr [r10-8]", {0xc4, 0xc2, 0x7d, 0x18, 0x5a, 0xf8},
           [](VexAssembler& a) { a.broadcast(3, Reg::r10, -8); });
    expect("vfmadd231ps ymm0, ymm14, ymm12", {0xc4, 0xc2, 0x0d, 0xb8, 0xc4},
           [](VexAssembler& a) { a.fma(0, 14, 12); });
    expect("vfmadd231ps ymm11, ymm14, ymm13", {0xc4, 0x42, 0x0d, 0xb8, 0xdd},
           [](VexAssembler& a) { a.fma(11, 14, 13); });
    expect("vfmadd231ps ymm9, ymm2, ymm5", {0xc4, 0x62, 0x6d, 0xb8, 0xcd}, [](VexAssembler& a) { a.fma(9, 2, 5); });
    expect("vfmadd231ps ymm4, ymm14, [rcx-96]", {0xc4, 0xe2, 0x0d, 0xb8, 0x61, 0xa0},
           [](VexAssembler& a) { a.fma_memory(4, 14, Reg::rcx, -96); });
    expect("vfmadd231ps ymm10, ymm1, [r9+0x200]", {0xc4, 0x42, 0x75, 0xb8, 0x91, 0x00, 0x02, 0x00, 0x00},
           [](VexAssembler& a) { a.fma_memory(10, 1, Reg::r9, 0x200); });
    expect("vxorps ymm0, ymm0, ymm0", {0xc5, 0xfc, 0x57, 0xc0}, [](VexAssembler& a) { a.zero_vector(0); });
    expect("vxorps ymm6, ymm6, ymm6", {0xc5, 0xcc, 0x57, 0xf6}, [](VexAssembler& a) { a.zero_vector(6); });
    expect("vxorps ymm11, ymm11, ymm11", {0xc4, 0x41, 0x24, 0x57, 0xdb}, [](VexAssembler& a) { a.zero_vector(11); });
}

}  // namespace spdf::test
