#include "spmm/row_products.hpp"

namespace spdf {

const CompactBackend kPortableCompact = {rows_kernel, kWidth, &kPortablePacking};

}  // namespace spdf
