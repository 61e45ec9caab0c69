#include "spmm/row_products.hpp"

#if defined(__x86_64__)

namespace spdf {

const CompactBackend kAvx2Compact = {rows_kernel, kWidth, &kPortablePacking};

}  // namespace spdf

#endif
