#if defined(__x86_64__)

#include "sddmm/products_portable.hpp"

namespace spdf::sddmm {

const Products kAvx2Products = kPortable;

}  // namespace spdf::sddmm

#endif
