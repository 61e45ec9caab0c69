#include "sddmm/products_portable.hpp"

namespace spdf::sddmm {

const Products kPortableProducts = kPortable;

}  // namespace spdf::sddmm
