#if defined(__x86_64__)

#include "spmm/row_products.hpp"

namespace spdf {

const CompactBackend kAvx2Compact = {rows_kernel, kWidth, &kAvx2Packing};

}  // namespace spdf

#endif
