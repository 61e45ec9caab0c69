// Memory for generated code. Never writable and executable at once: filled through a writable mapping, then run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spdf::jit {

class CodeMemory {
public:
    CodeMemory() = default;
    CodeMemory(const CodeMemory&) = delete;
    CodeMemory& operator=(const CodeMemory&) = delete;
    ~CodeMemory();

    // Writable memory for `size` bytes of code, or nullptr if the allocation fails.
    uint8_t* reserve(size_t size);
    // Makes the memory executable and read-only. False if the host forbids generated code.
    bool seal();

    const uint8_t* code() const { return run_; }
    size_t bytes() const { return bytes_; }

private:
    void release();

    uint8_t* write_ = nullptr;
    uint8_t* run_ = nullptr;
    size_t bytes_ = 0;
};

// Whether this host allows a process to run generated code; tested once.
bool code_allowed();

}  // namespace spdf::jit
