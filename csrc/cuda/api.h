// Entry points of the CUDA kernels. Each launches on `stream` of the current device and returns 0 or a CUDA error code;
// none allocates, waits or reads device memory on the host.
#pragma once
#include "args.h"

namespace fastlstm::cuda {

struct DecodeArgs;  // decode_args.h

// Part of step s.begin, `rows` sequences running. `products`: type of hw, dh_unprojected and dh_state (float, or the
// call's type).
int per_step_forward(Type type, Type products, const ForwardArgs& args, int rows, void* stream);
int per_step_backward_sum(Type type, Type products, const BackwardArgs& args, int rows, void* stream);
int per_step_backward(Type type, Type products, const BackwardArgs& args, int rows, void* stream);

// Steps [s.begin, s.end) in one launch; args.t comes from the planner.
int single_block_forward(Type type, const ForwardArgs& args, void* stream);
int single_block_backward(Type type, const BackwardArgs& args, void* stream);
// The same; `first` and `rows`: the rows of these steps. Fills the exchange buffers with kNotWritten, then launches.
int cooperative_forward(Type type, const ForwardArgs& args, int64_t first, int64_t rows, void* stream);
int cooperative_backward(Type type, const BackwardArgs& args, int64_t first, int64_t rows, void* stream);
// The same for f16, bf16 and tf32 (kInvalidValue else), H a multiple of 16 bytes, w_hh, h0 and h aligned to 16 bytes
// and fewer than 2^31 rows; forward exchanges h itself.
int lean_forward(Type type, const ForwardArgs& args, int64_t first, int64_t rows, void* stream);
// Layers or directions side by side: first[i] and rows[i] are those of layer i.
int lean_layers_forward(Type type, const LayersArgs& args, const int64_t* first, const int64_t* rows, void* stream);
int lean_layers_backward(Type type, const LayersBackwardArgs& args, const int64_t* first, const int64_t* rows,
                         void* stream);
int lean_backward(Type type, const BackwardArgs& args, int64_t first, int64_t rows, void* stream);

// The sampling loop; weights: f32 or bf16 (kInvalidValue else), aligned to 16 bytes; args.plan by plan_decode.
int decode(Type weights, const DecodeArgs& args, void* stream);

const char* describe_error(int code);
int timeout_ms();  // how long a block waits for another

}  // namespace fastlstm::cuda
