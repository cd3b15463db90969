// The planner: which kernel runs a call, and how it is spread over blocks, warps and memory, by the cost model of
// cost_model.h. It can be asked about a GPU that is not there.
#pragma once
#include <string>
#include <vector>

#include "cost_model.h"
#include "layout.h"

namespace fastlstm::cuda {

enum class Kernel : int { per_step = 0, single_block = 1, cooperative = 2, lean = 3 };

struct Problem {
  Type type;
  int H, B;
  bool backward, projected;
  int layers = 1;        // layers or directions in one launch
  bool chained = false;  // each is above the one before it
};

struct Choice {
  Kernel kernel;
  Tiling t;
  int blocks, threads;                      // of a launch; 0 for `per_step`, whose launches have the size of the step
  int64_t shared_bytes;                     // dynamic shared memory of a block
  double register_weights, shared_weights;  // bytes of W_hh in the registers and in the shared memory of a block
  StepWork work;
  double us;          // predicted for one step
  std::string bound;  // the largest part of it
  std::string why;
};

// Why a kernel cannot run with a tiling; empty if it can.
std::string unfit(const Gpu& gpu, const Problem& problem, Kernel kernel, const Tiling& t);
// What running it would mean. Only for a tiling that fits.
Choice describe(const Gpu& gpu, const Problem& problem, Kernel kernel, const Tiling& t);
// Every tiling of `single_block`, `cooperative` or `lean` that fits, the cheapest first.
std::vector<Choice> tilings(const Gpu& gpu, const Problem& problem);
// The cheapest by the cost model; of two equally good, the one with fewer rounds through L2. only: a Kernel as int, or
// -1 for any; no fitting one: `why` says so and blocks is -1.
Choice plan(const Gpu& gpu, const Problem& problem, int only);

// The cheapest tiling of `lean` for problem.layers layers in one launch; blocks is -1 where none fits.
Choice plan_layers(const Gpu& gpu, const Problem& problem);

const char* name_of(Kernel kernel);

}  // namespace fastlstm::cuda
