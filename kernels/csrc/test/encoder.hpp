// Compares the bytes of an encoder with those of the GNU assembler for the same instructions.
#pragma once

#include <cstdint>
#include <vector>

#include "test/check.hpp"

namespace spdf::test {

template <class Assembler, class Write>
void expect_bytes(const char* text, const std::vector<uint8_t>& bytes, Write write) {
    std::vector<uint8_t> written(32, 0x90);
    Assembler assembler(written.data());
    write(assembler);
    Assembler counter(nullptr);
    write(counter);
    written.resize(assembler.size());
    check(written == bytes, text);
    check(counter.size() == bytes.size(), "counting gives the size that is written");
}

}  // namespace spdf::test
