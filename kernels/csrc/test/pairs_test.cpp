// Pairs of inputs: each odd input occurs once, and there are at least as many common rows as in a simple greedy choice.
#include <algorithm>
#include <vector>

#include "jit/pairs.hpp"
#include "spdf_kernels.h"
#include "test/check.hpp"

namespace spdf::test {

#if defined(__x86_64__)

namespace {

int common(const std::vector<uint32_t>& rows, int64_t even, int64_t odd) {
    return __builtin_popcount(rows[static_cast<size_t>(2 * even)] & rows[static_cast<size_t>(2 * odd + 1)]);
}

// Common rows of pairs in a greedy choice, from the most common rows to none, within inputs first .. end - 1.
int64_t greedy(const std::vector<uint32_t>& rows, int64_t first, int64_t end) {
    std::vector<bool> even(static_cast<size_t>(end - first)), odd(even);
    int64_t sum = 0;
    for (int level = 31; level > 0; --level) {
        for (int64_t i = first; i < end; ++i) {
            for (int64_t j = first; j < end && !even[i - first]; ++j) {
                if (odd[j - first] || common(rows, i, j) != level) continue;
                even[i - first] = odd[j - first] = true;
                sum += level;
            }
        }
    }
    return sum;
}

void test_matching(int64_t pairs, double density) {
    Random random(static_cast<uint64_t>(pairs));
    std::vector<uint32_t> rows(static_cast<size_t>(2 * pairs));
    for (uint32_t& word : rows) {
        for (int r = 0; r < 31; ++r) word |= static_cast<uint32_t>(random.uniform() < density) << r;
    }
    std::vector<uint16_t> partner(static_cast<size_t>(pairs));
    jit::match_pairs(rows.data(), pairs, partner.data());
    int64_t sum = 0, neighbours = 0;
    for (int64_t p = 0; p < pairs; ++p) {
        sum += common(rows, p, partner[static_cast<size_t>(p)]);
        neighbours += common(rows, p, p);
    }
    std::sort(partner.begin(), partner.end());
    bool each_once = true;
    for (int64_t p = 0; p < pairs; ++p) each_once = each_once && partner[static_cast<size_t>(p)] == p;
    check(each_once, "each odd input is in one pair");
    check(sum >= neighbours, "no fewer common rows than neighbours have");
    if (pairs <= 384) check(sum == greedy(rows, 0, pairs), "as many common rows as greedy choice finds");
}

}  // namespace

#endif

void test_pairs() {
#if defined(__x86_64__)
    if (spdf_backend_missing(SPDF_JIT)) return;
    for (const int64_t pairs : {1, 2, 63, 64, 65, 383, 384, 385, 768}) {
        for (const double density : {0.0, 0.1, 0.5, 1.0}) test_matching(pairs, density);
    }
#endif
}

}  // namespace spdf::test
