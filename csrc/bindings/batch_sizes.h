// The batch sizes of a packed call, for the entry points that run a layer.
#pragma once
#include "arguments.h"

// The checked batch sizes, and their sum
inline const int64_t* batch_sizes_of(Arguments& a, int64_t T, int64_t B, int64_t& N) {
  const int64_t* sizes = a.copied<int64_t>("batch_sizes", T);
  N = 0;
  for (int64_t t = 0; t < T; ++t) {
    if (sizes[t] < 1 || sizes[t] > (t ? sizes[t - 1] : B) || (t == 0 && sizes[t] != B))
      throw py::index_error("batch_sizes hold " + std::to_string(sizes[t]) + " at step " + std::to_string(t) +
                            ", expected numbers that fall from B = " + std::to_string(B) + " to at least 1");
    N += sizes[t];
  }
  return sizes;
}
