#include "jit/code_memory.hpp"

#if defined(__x86_64__) && defined(__linux__)

#include <sys/mman.h>
#include <unistd.h>

namespace spdf::jit {

namespace {

bool write_all(int file, const uint8_t* from, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        const ssize_t written = ::write(file, from + done, bytes - done);
        if (written <= 0) return false;
        done += static_cast<size_t>(written);
    }
    return true;
}

}  // namespace

CodeMemory::~CodeMemory() { release(); }

void CodeMemory::release() {
    if (write_) munmap(write_, bytes_);
    if (run_ && run_ != write_) munmap(run_, bytes_);
    write_ = run_ = nullptr;
    bytes_ = 0;
}

uint8_t* CodeMemory::reserve(size_t size) {
    release();
    constexpr size_t kPage = 4096;
    bytes_ = (size + kPage - 1) / kPage * kPage;
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        bytes_ = 0;
        return nullptr;
    }
    madvise(memory, bytes_, MADV_HUGEPAGE);  // fewer instruction TLB misses; may fail
    write_ = static_cast<uint8_t*>(memory);
    return write_;
}

bool CodeMemory::seal() {
    if (mprotect(write_, bytes_, PROT_READ | PROT_EXEC) == 0) {
        run_ = write_;
        return true;
    }
    // Some hosts forbid execution of anonymous memory that was written. Copy the code to a file in memory and map that
    // as executable only. The mapping keeps the file alive; one open descriptor per direction would exceed a process's
    // limit.
    const int file = memfd_create("spdf_kernels_code", MFD_CLOEXEC);
    if (file < 0) return false;
    const bool written = write_all(file, write_, bytes_);
    void* memory = written ? mmap(nullptr, bytes_, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0) : MAP_FAILED;
    close(file);
    if (memory == MAP_FAILED) return false;
    run_ = static_cast<uint8_t*>(memory);
    munmap(write_, bytes_);
    write_ = nullptr;
    return true;
}

bool code_allowed() {
    static const bool allowed = [] {
        CodeMemory memory;
        uint8_t* code = memory.reserve(1);
        if (!code) return false;
        code[0] = 0xc3;  // ret
        if (!memory.seal()) return false;
        reinterpret_cast<void (*)()>(reinterpret_cast<uintptr_t>(memory.code()))();
        return true;
    }();
    return allowed;
}

}  // namespace spdf::jit

#else

namespace spdf::jit {

CodeMemory::~CodeMemory() = default;
void CodeMemory::release() {}
uint8_t* CodeMemory::reserve(size_t) { return nullptr; }
bool CodeMemory::seal() { return false; }
bool code_allowed() { return false; }

}  // namespace spdf::jit

#endif
