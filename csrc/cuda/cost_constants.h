// The constants of the cost model (cost_model.h): the one place where their values stand.
// `python -m tools.gpu_fit raw.jsonl --write` puts fitted values here.
//
// From: 1892 steps measured on NVIDIA H200, docs/gpu-measured.md
#pragma once

// X(name, value, part, meaning): `part` of a prediction is `value` times what StepWork counts for it.
// clang-format off
#define FASTLSTM_COST(X) \
  X(l2_excess, 0.709, "L2 bytes", "time of the bytes from L2, over that at the device's rate") \
  X(shared_excess, 1.11, "shared memory", "time of the bytes from shared memory, over that at 128 bytes a clock") \
  X(product_excess, 1, "products", "time of the products, over that at the device's peak rate") \
  X(l2_clocks, 1270, "L2 latency", "clocks of a round through L2: the loads of a lane that are in flight together") \
  X(kept_span_clocks, 0.81, "kept spans", "clocks of a span of W_hh that lies in shared memory, in a warp's chain of products") \
  X(register_span_clocks, 22.2, "register spans", "clocks of a span of W_hh that lies in registers, in the same chain") \
  X(step_clocks, 0, "step", "clocks of what a warp does once a step") \
  X(forward_cell_clocks, 1340, "forward cells", "clocks of the cells of 8 units and 8 sequences, forward") \
  X(backward_cell_clocks, 4180, "backward cells", "clocks of the cells of 8 units and 8 sequences, backward") \
  X(slot_clocks, 0.374, "issue slots", "clocks that an instruction of a warp of the same scheduler adds") \
  X(barrier_clocks, 1380, "barriers", "clocks of a block barrier") \
  X(partial_clocks, 147, "partial sums", "clocks of adding the sums of one more warp to a tile") \
  X(gather_clocks, 1290, "gathers", "clocks from a store to where all blocks have loaded the words of all others") \
  X(gather_kib_clocks, 14, "gathered bytes", "clocks that a KiB of those words adds") \
  X(pass_clocks, 600, "passes", "clocks of products, sums, cells and send of a pass, the next gather not begun") \
  X(grid_wait_us, 0.591, "hand-over", "microseconds from a store to where another block can load it") \
  X(launch_us, 8, "launch", "microseconds of a matrix product or kernel launched from Python, through torch or pybind11")
// clang-format on
