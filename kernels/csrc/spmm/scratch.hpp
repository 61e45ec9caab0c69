// Temporary memory of a product. The calling thread keeps it for its next product, because new pages cost more than the
// packing that fills them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace spdf {

class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // At least `count` floats, aligned to a cache line, contents arbitrary. Throws std::bad_alloc.
    float* floats(int64_t count) {
        // Large memory requests huge pages if the system offers them, because packed operands are read in many small
        // strides.
        constexpr size_t kHugePage = size_t{1} << 21;
        const size_t wanted = static_cast<size_t>(count) * sizeof(float);
        const size_t page = wanted >= kHugePage ? kHugePage : 4096;
        const size_t bytes = (wanted + page - 1) / page * page;
        if (bytes > bytes_) {
            std::free(memory_);
            bytes_ = 0;
            memory_ = std::aligned_alloc(page, bytes);
            if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
            if (page == kHugePage) madvise(memory_, bytes, MADV_HUGEPAGE);  // may fail
#endif
            bytes_ = bytes;
        }
        return static_cast<float*>(memory_);
    }

private:
    void* memory_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace spdf
