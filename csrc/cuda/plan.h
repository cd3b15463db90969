// The planner: which kernel runs a call, and how it is spread over blocks, warps and memory. Plain C++ that knows a GPU
// by its numbers only, so it can be asked about one that is not there.
#pragma once
#include <string>

#include "layout.h"

namespace fastlstm::cuda {

enum class Kernel : int { step = 0, tile = 1, persistent = 2 };

// A GPU, with the constants of the cost model; fastlstm/gpu_model.py, which keeps both, says what they mean.
struct Gpu {
  int capability;  // 80 for 8.0
  int sms;
  int64_t shared_bytes;  // that one block can ask for
  double ghz, hbm_gbs, l2_gbs;
  double fma, half, tf32;  // multiply-adds of one SM in a clock
  double barrier_clocks, l2_clocks, cell_clocks, efficiency, launch_us, grid_wait_us;
};

struct Problem {
  Type type;
  int H, B;
  bool backward, projected;
};

// One step as the cost model counts it, per block unless it says chip.
struct Work {
  double blocks;        // chip
  double l2_bytes;      // read from L2
  double shared_bytes;  // read from shared memory
  double products;      // multiply-adds
  double cells;         // units times sequences, padding included
  double barriers, l2_rounds;
  double hbm_bytes, launches, grid_waits;  // chip
};

struct Choice {
  Kernel kernel;
  Tiling t;
  int blocks, threads;                      // of a launch; 0 for `step`, whose launches have the size of the step
  int64_t shared_bytes;                     // dynamic shared memory of a block
  double register_weights, shared_weights;  // bytes of W_hh in the registers and in the shared memory of a block
  Work work;
  double us;  // predicted for one step
  std::string why;
};

// Why a kernel cannot run with a tiling; empty if it can.
std::string unfit(const Gpu& gpu, const Problem& problem, Kernel kernel, const Tiling& t);
// What running it would mean. Only for a tiling that fits.
Choice describe(const Gpu& gpu, const Problem& problem, Kernel kernel, const Tiling& t);
// The cheapest by the cost model. only: a Kernel as int, or -1 for any; no fitting one: `why` says so and blocks is -1.
Choice plan(const Gpu& gpu, const Problem& problem, int only);

const char* name_of(Kernel kernel);

}  // namespace fastlstm::cuda
