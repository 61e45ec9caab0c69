#include "test/check.hpp"

namespace spdf::test {
void test_evex();
void test_vex();
void test_pairs();
void test_products();
}  // namespace spdf::test

int main() {
    spdf::test::test_evex();
    spdf::test::test_vex();
    spdf::test::test_pairs();
    spdf::test::test_products();
    std::printf("%d checks failed\n", spdf::test::failures);
    return spdf::test::failures ? 1 : 0;
}
