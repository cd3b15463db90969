// The cost model: what one time step of a kernel takes on a GPU, from what it moves, computes and waits for. The
// planner ranks tilings by it; Python asks it (bindings_plan.cpp). Plain C++ that knows a GPU by its numbers only.
//
// One step of one block is the sum of the parts of its critical path, times the waves of blocks over the SMs:
//
//   max(L2 bytes, shared memory, products)          throughputs: these overlap
//   + L2 latency + kept spans + register spans      one warp's chain of loads and products
//   + step + forward cells + backward cells         what it does once, and its cells one after the other
//   + issue slots                                   what the warps of its scheduler issue
//   + partial sums + barriers + hand-over           synchronisation of warps and blocks
//
// `lean` counts otherwise: gathers + gathered bytes + passes.
//
//
// Launches are added, and no step is faster than its activations pass through HBM. Each part is a count of `StepWork`
// times one constant of cost_constants.h, so that measured steps give the constants by linear least squares.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "args.h"
#include "cost_constants.h"

namespace fastlstm::cuda {

struct Cost {
#define FASTLSTM_FIELD(name, value, part, meaning) double name = value;
  FASTLSTM_COST(FASTLSTM_FIELD)
#undef FASTLSTM_FIELD
};

struct Gpu {
  std::string name;
  int capability = 0;  // 80 for 8.0
  int sms = 0;
  double ghz = 0, hbm_gbs = 0, l2_gbs = 0;
  int64_t shared_bytes = 0;            // that one block can ask for
  double fma = 0, half = 0, tf32 = 0;  // multiply-adds of one SM in a clock: float32, tensor cores through mma.sync
  Cost cost;
};

// X(name, meaning): what one step counts, per block unless it says warp or chip. A warp's counts are those of the warp
// that has most to do.
// clang-format off
#define FASTLSTM_WORK(X) \
  X(blocks, "chip") \
  X(l2_bytes, "read from L2") \
  X(shared_bytes, "read from shared memory") \
  X(products, "multiply-adds") \
  X(l2_rounds, "warp: rounds through L2 that wait for each other") \
  X(kept_spans, "warp: products with a span of W_hh in shared memory") \
  X(register_spans, "warp: products with a span of W_hh in registers") \
  X(steps, "1, of a kernel that goes through the steps itself") \
  X(forward_cells, "warp: cells of 8 units and 8 sequences, one after the other") \
  X(backward_cells, "warp: the same, backward") \
  X(issue_slots, "instructions of all warps that share one of the four schedulers") \
  X(partial_sums, "warp: sums of other warps that it adds up") \
  X(barriers, "waits for all warps of the block") \
  X(gathers, "lean: waits for the words of all blocks, one after the other") \
  X(gathered_kib, "lean: KiB that a block loads in them") \
  X(passes, "lean: passes that do not hide behind a gather") \
  X(grid_waits, "chip: hand-overs from block to block") \
  X(launches, "chip: kernels launched") \
  X(hbm_bytes, "chip: activations in and out")
// clang-format on

struct StepWork {
#define FASTLSTM_FIELD(name, meaning) double name = 0;
  FASTLSTM_WORK(FASTLSTM_FIELD)
#undef FASTLSTM_FIELD
};

struct Prediction {
  enum Part { kL2, kShared, kProducts, kChain };    // the first three overlap; from kChain on, parts add up
  static constexpr int kCosts = 17, kHbm = kCosts;  // parts in the order of FASTLSTM_COST, then HBM
  double us = 0;
  std::array<double, kCosts + 1> parts{};  // microseconds

  int bound() const;  // the largest part
};

const char* part_name(int part);

Prediction predict(const Gpu& gpu, Type type, const StepWork& work);

// Bytes that a step moves through HBM: input side in, h out; keeping: also the gates and the float cell state out.
double activation_bytes(int H, int B, int type_bytes, bool keeping);
// Microseconds that no forward step can beat: its products at peak rate, its activations through HBM, W_hh read once
// from registers or shared memory of all SMs together, at 128 bytes a clock each.
double floor_us(const Gpu& gpu, Type type, int H, int B);

// GPUs whose rates are known.
const std::vector<Gpu>& devices();
// The known GPU whose name is part of `name`, or one of its capability, with an SM count and shared memory of its own.
Gpu known(const std::string& name, int capability, int sms, int64_t shared_bytes);

inline int bytes_of(Type type) { return type == Type::f16 || type == Type::bf16 ? 2 : 4; }

}  // namespace fastlstm::cuda
