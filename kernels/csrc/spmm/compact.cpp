#include "spmm/compact.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <vector>

namespace spdf {

namespace {

constexpr int64_t kBlockFloats = 128 * 1024;  // of packed x: half of a second-level cache of one megabyte

}  // namespace

template <class T>
void spmm_compact(const CompactBackend& backend, const Rows& rows, const T* x, int64_t tokens, const float* values,
                  const float* bias, T* y, int threads, Scratch& scratch) {
    const int64_t width = backend.width;
    const int64_t groups = (tokens + width - 1) / width;
    // With fewer groups than threads the rows are divided too, and each part packs x.
    const int64_t parts = std::min<int64_t>(rows.count, (threads + groups - 1) / groups);
    const int64_t block_inputs = std::min(rows.inputs, kBlockFloats / width);
    const int64_t x_floats = block_inputs * width;
    const int64_t y_floats = rows.count * width;
    float* memory = scratch.floats((x_floats + y_floats) * threads);
    std::vector<int64_t> cursors(static_cast<size_t>(rows.count * threads));
    const Packing& packing = *backend.packing;
    const bool stream = streamed(y, tokens, rows.count, threads);

#pragma omp parallel num_threads(threads)
    {
        int64_t thread = 0;
#ifdef _OPENMP
        thread = omp_get_thread_num();
#endif
        int64_t* cursor = cursors.data() + thread * rows.count;
        float* x_packed = memory + thread * (x_floats + y_floats);
        float* y_packed = x_packed + x_floats;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < groups * parts; ++task) {
            const int64_t first = task / parts * width;
            const int64_t count = std::min(width, tokens - first);
            const int64_t begin = rows.count * (task % parts) / parts;
            const int64_t end = rows.count * (task % parts + 1) / parts;
            std::copy(rows.start + begin, rows.start + end, cursor + begin);
            for (int64_t input = 0; input < rows.inputs; input += block_inputs) {
                const int64_t inputs = std::min(block_inputs, rows.inputs - input);
                for (int64_t t = 0; t < width; t += 16) {  // past the last token: zeros
                    const int lanes = static_cast<int>(std::clamp<int64_t>(count - t, 0, 16));
                    packing.pack(x + (first + t) * rows.inputs + input, rows.inputs, lanes, inputs, x_packed + t, width);
                }
                backend.kernel(rows, begin, end, {input, input + inputs, cursor}, values, x_packed, y_packed);
            }
            for (int64_t t = 0; t < count; t += 16) {
                const int lanes = static_cast<int>(std::min<int64_t>(count - t, 16));
                packing.unpack(y_packed + begin * width + t, width, lanes, end - begin, bias ? bias + begin : nullptr,
                               y + (first + t) * rows.count + begin, rows.count, stream);
            }
        }
    }
}

template void spmm_compact(const CompactBackend&, const Rows&, const float*, int64_t, const float*, const float*,
                           float*, int, Scratch&);
template void spmm_compact(const CompactBackend&, const Rows&, const Bf16*, int64_t, const float*, const float*, Bf16*,
                           int, Scratch&);

}  // namespace spdf
