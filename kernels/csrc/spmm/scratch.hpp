// Memory that a product needs while it runs, kept by the calling thread for its next one: fresh pages cost more than the
// packing that fills them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace spdf {

class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // At least `count` floats, aligned to a cache line, contents arbitrary. Throws std::bad_alloc.
    float* floats(int64_t count) {
        const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 4095) / 4096 * 4096;
        if (bytes > bytes_) {
            std::free(memory_);
            bytes_ = 0;
            memory_ = std::aligned_alloc(4096, bytes);
            if (!memory_) throw std::bad_alloc();
            bytes_ = bytes;
        }
        return static_cast<float*>(memory_);
    }

private:
    void* memory_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace spdf
