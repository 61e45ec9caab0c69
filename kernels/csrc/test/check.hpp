// Shared by the C++ tests: a counter of failures and a small deterministic random generator.
#pragma once

#include <cstdint>
#include <cstdio>

namespace spdf::test {

inline int failures = 0;

inline void check(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "FAILED: %s\n", what);
    ++failures;
}

class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
    // Uniform in [0, 1).
    double uniform() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<double>(state_ >> 40) / static_cast<double>(1 << 24);
    }
    float symmetric() { return static_cast<float>(2 * uniform() - 1); }

private:
    uint64_t state_;
};

}  // namespace spdf::test
