#include "plan.h"

#include <algorithm>
#include <cstdio>
#include <tuple>

#include "lean_layout.h"

namespace fastlstm::cuda {
namespace {

int pieces_of(const Problem& p) { return p.backward ? kBackwardPieces : kForwardPieces; }
int units_of_group(const Problem& p) { return p.backward ? 16 : 8; }

constexpr int kMostPasses = 16;        // of a block of `lean`
constexpr double kReloadClocks = 300;  // a load from L2 of words that are there

// Instructions of a warp, read from machine code: a cell of 8 units and 8 sequences, and what every step has once.
constexpr double kCellInstructions = 300, kStepInstructions = 200;

int spans_in_registers(const Problem& p, Kernel kernel) {
  return register_spans(p.type == Type::f32, pieces_of(p), kernel == Kernel::single_block);
}

Layout layout_of(const Problem& p, Kernel kernel, const Tiling& t) {
  const auto lay = p.backward ? backward_layout : forward_layout;
  return lay(t, p.H, bytes_of(p.type), spans_in_registers(p, kernel), kernel == Kernel::single_block);
}

double kib(double bytes) { return bytes / 1024; }

template <class... Values>
std::string text(const char* format, Values... values) {
  char line[240];
  snprintf(line, sizeof line, format, values...);
  return line;
}

double activations(const Problem& p) { return activation_bytes(p.H, p.B, bytes_of(p.type), true); }

StepWork per_step_work(const Gpu& gpu, const Problem& p) {
  const double size = bytes_of(p.type), share = divide_up(4 * p.H, gpu.sms), padded = 16 * divide_up(p.B, 16);
  StepWork w;
  w.blocks = gpu.sms;
  w.l2_bytes = (share + p.B) * p.H * size;
  w.shared_bytes = share * p.H * size;
  w.products = share * p.H * padded;
  w.issue_slots = kCellInstructions * share / 4 * padded / 128;
  w.barriers = 4, w.launches = 2, w.l2_rounds = 6;
  w.hbm_bytes = activations(p);
  return w;
}

// What the busiest warp has of the tiles of a step, where the warps of a group share out `shares` parts of each.
int own_shares(const Tiling& t, int shares) {
  const int last = t.row_tiles % t.phase;
  return t.row_tiles / t.phase * divide_up(shares * t.phase, t.k_splits) +
         (last ? divide_up(shares * last, t.k_splits) : 0);
}

// Halves of a group of 16 columns whose cells a block runs.
int halves(const Tiling& t) { return min_of(2, 16 * t.groups / t.gate_splits / 8); }

// How many parts the warps of a group make of a tile: they share out its halves and, where they are enough, sequences.
int parts_of_tile(const Problem& p, const Tiling& t) {
  const int units = p.backward ? halves(t) : 1;
  return t.k_splits >= 2 * units ? 2 * units : units;
}

// Cells of 8 units and 8 sequences that the busiest warp runs in a step.
double own_cells(const Problem& p, const Tiling& t) {
  const double precise = bytes_of(p.type) == 4 ? 1.5 : 1;  // the library's functions instead of ex2 and rcp (types.cuh)
  const int units = p.backward ? halves(t) : 1;
  return precise * own_shares(t, parts_of_tile(p, t)) * units / parts_of_tile(p, t);
}

// Of a span and a tile: the scalar product has 128 multiply-adds a lane where tensor cores have four instructions.
int instructions_of_span(const Problem& p) { return p.type == Type::f32 ? 150 : 20; }
// The chain of a span's products beside that on tensor cores.
int chain_of_span(const Problem& p) { return p.type == Type::f32 ? 3 : 1; }

// What the warp with most to do waits for and issues.
void count_warp(StepWork& w, const Problem& p, Kernel kernel, const Tiling& t, const Layout& l) {
  const int in_registers = min_of(spans_in_registers(p, kernel), l.spans_per_warp);
  w.kept_spans = double(l.spans_per_warp - in_registers) * t.row_tiles * chain_of_span(p);
  w.register_spans = double(in_registers) * t.row_tiles * chain_of_span(p);
  const double cells = own_cells(p, t);
  (p.backward ? w.backward_cells : w.forward_cells) = cells;
  w.steps = 1;
  const double of_spans = instructions_of_span(p) * double(l.spans_per_warp) * t.row_tiles;
  w.issue_slots = (kStepInstructions + of_spans + kCellInstructions * cells) * l.warps / 4;
  // of all values of a tile; backward without parts, a warp adds those of its half
  const double summed = p.backward && t.gate_splits > 1 ? own_shares(t, 1) : cells / (p.backward ? halves(t) : 1);
  if (t.k_splits > 1) w.partial_sums = t.k_splits * summed;
  if (kernel != Kernel::cooperative) return;
  w.l2_rounds = double(divide_up(l.spans_per_warp, kLoadsInFlight)) * t.row_tiles;
  if (t.gate_splits > 1) w.l2_rounds += divide_up(t.gate_splits, kPartsInFlight) * own_shares(t, parts_of_tile(p, t));
}

StepWork recurrent_work(const Problem& p, Kernel kernel, const Tiling& t, const Layout& l) {
  const double rows = 8.0 * t.row_tiles, spans = l.spans, pieces = pieces_of(p);
  const double kept = std::max(0, l.spans_per_warp - spans_in_registers(p, kernel));
  const double operand_reads = p.type == Type::f32 ? 1024 : 512;  // bytes of shared memory for a span and 8 sequences
  StepWork w;
  w.blocks = double(t.unit_blocks) * t.row_blocks;
  w.products = 64.0 * t.groups * pieces * spans * (16.0 / bytes_of(p.type)) / 2 * rows;
  w.shared_bytes = t.row_tiles * (l.warps * kept * pieces * kWeightBytes + t.groups * spans * operand_reads);
  w.barriers = (t.k_splits > 1 ? divide_up(t.row_tiles, t.phase) : 0) + (kernel == Kernel::single_block ? 1 : 0);
  w.hbm_bytes = activations(p);
  if (kernel == Kernel::cooperative) {
    const double partial = t.gate_splits > 1 ? 8.0 * units_of_group(p) * t.groups * rows : 0;
    w.l2_bytes = t.groups * spans * 64 * rows + partial;
    w.grid_waits = t.gate_splits > 1 ? 2 : 1;
  }
  count_warp(w, p, kernel, t, l);
  return w;
}

// What a step of `lean` waits for and does. A pass whose words have come takes pass_clocks and a load from L2; with
// several passes in a block, all but the first hide behind the hand-over of the one before as long as there is time.
// No pass is shorter than its products at the peak rate of the tensor cores.
StepWork lean_work(const Gpu& gpu, const Problem& p, const Tiling& t) {
  const Cost& c = gpu.cost;
  const double size = bytes_of(p.type), passes = t.row_tiles / t.phase, rows = 8.0 * t.phase;
  const double numbers = p.backward ? 4.0 * p.H / t.gate_splits : p.H;
  const double parts = t.gate_splits > 1 ? 4.0 * 16 * t.gate_splits : 0;  // bytes of a sequence's partial sums
  const double spans = lean_spans(t, p.H, int(size), p.backward) * (p.chained ? 2 : 1), words = lean_words(p.backward);
  // beyond a pass of one tile and 64 words of W_hh: products, and what is read from shared memory
  const double products = spans * t.groups * words / 64 * t.phase;
  StepWork w;
  w.blocks = double(t.unit_blocks) * t.row_blocks * p.layers;
  w.gathers = t.gate_splits > 1 ? 2 : 1;
  w.gathered_kib = passes * rows * (numbers * size + parts) / 1024;
  const double one = (p.backward ? 1.4 : 1) + 0.15 * std::max(0.0, products - 1) + (t.gate_splits > 1 ? 0.5 : 0);
  const double multiplied = spans * t.groups * words * kLeanThreads * (4 / size) * rows;
  const double at_peak = multiplied / std::max(1e-9, p.type == Type::tf32 ? gpu.tf32 : gpu.half);
  const double pass = std::max(c.pass_clocks * one, at_peak), again = pass + kReloadClocks * w.gathers;
  const double hidden = std::min((passes - 1) * again, c.gather_clocks * w.gathers);
  w.passes = c.pass_clocks > 0 ? (pass + (passes - 1) * again - hidden) / c.pass_clocks : passes;
  w.hbm_bytes = activations(p) * p.layers;
  return w;
}

int64_t lean_bytes(const Problem& p, const Tiling& t) {
  const int spans = lean_spans(t, p.H, bytes_of(p.type), p.backward);
  return p.backward ? lean_backward_bytes(spans, t.gate_splits, t.row_tiles, p.chained)
                    : lean_forward_bytes(spans, t.groups, t.phase, t.row_tiles, p.chained);
}

// f(tiling) for every one of `lean`.
template <class F>
void for_lean_tilings(const Problem& p, F f) {
  const int row_tiles_of_call = divide_up(std::max(p.B, 1), 8);
  const auto offer = [&](int units, int groups, int tiles, int splits) {
    for (int passes = 1; passes <= kMostPasses; passes *= 2) {
      const int row_tiles = tiles * std::min(passes, divide_up(row_tiles_of_call, tiles));
      f(Tiling{divide_up(p.H, units * groups) * splits, divide_up(row_tiles_of_call, row_tiles), groups, kLeanWarps,
               row_tiles, tiles, splits});
      if (row_tiles >= row_tiles_of_call) break;
    }
  };
  for (const int groups : {1, 2, 4})
    for (const int tiles : {1, 2})
      if (p.backward && tiles == 1)
        offer(16, groups, 1, groups);
      else if (!p.backward && tiles * 8 < p.B + 8)
        offer(8, groups, tiles, 1);
}

// f(kernel, tiling) for everything worth a look.
template <class F>
void for_tilings(const Problem& p, F f) {
  for_lean_tilings(p, [&](const Tiling& t) { f(Kernel::lean, t); });
  const int units = units_of_group(p), row_tiles_of_call = divide_up(std::max(p.B, 1), 8);
  const auto offer = [&](const Tiling& t) { f(t.unit_blocks == 1 ? Kernel::single_block : Kernel::cooperative, t); };
  for (int groups = 1; groups <= max_warps(true); ++groups) {
    if (groups > 1 && (groups - 1) * units >= p.H) break;
    const int most = max_warps(divide_up(p.H, units * groups) == 1);
    for (int splits = 1; groups * splits <= most; splits *= 2)
      for (int tiles = 1; tiles <= 16; tiles *= 2) {
        const int row_tiles = std::min(tiles, row_tiles_of_call);
        for (int parts = 1; parts <= (p.backward ? 2 * groups : 1); parts *= 2)
          for (int phase = 1; phase <= (splits > 1 ? std::min(row_tiles, 4) : 1); phase *= 2)
            offer(Tiling{divide_up(p.H, units * groups) * parts, divide_up(row_tiles_of_call, row_tiles), groups,
                         splits, row_tiles, phase, parts});
        if (row_tiles == row_tiles_of_call) break;
      }
  }
}

std::string unfit_type(const Gpu& gpu, const Problem& p) {
  if (gpu.capability < 75)
    return text("compute capability %d.%d, at least 7.5 is needed", gpu.capability / 10, gpu.capability % 10);
  if (gpu.capability < 80 && (p.type == Type::bf16 || p.type == Type::tf32))
    return text("%s products need compute capability 8.0, this is %d.%d", p.type == Type::bf16 ? "bfloat16" : "TF32",
                gpu.capability / 10, gpu.capability % 10);
  return "";
}

bool runs_layers(const Problem& p, int spans, const Tiling& t) {
#define FASTLSTM_TRY(Spans, Groups, Tiles) \
  if (!p.backward && spans == Spans && t.groups == Groups && t.phase == Tiles) return true;
  FASTLSTM_LEAN_LAYERS(FASTLSTM_TRY)
#undef FASTLSTM_TRY
#define FASTLSTM_TRY(Spans) \
  if (p.backward && spans == Spans && t.gate_splits == 1) return true;
  FASTLSTM_LEAN_LAYERS_BACKWARD(FASTLSTM_TRY)
#undef FASTLSTM_TRY
  return false;
}

std::string unfit_lean(const Gpu& gpu, const Problem& p, const Tiling& t) {
  if (p.type == Type::f32) return "float32 products do not run on tensor cores";
  if (gpu.capability < 80)
    return text("lean needs compute capability 8.0, this is %d.%d", gpu.capability / 10, gpu.capability % 10);
  if (p.H * bytes_of(p.type) % 16) return text("H %d is not a multiple of %d", p.H, 16 / bytes_of(p.type));
  const int spans = lean_spans(t, p.H, bytes_of(p.type), p.backward);
  if (t.k_splits != kLeanWarps || spans == 0)
    return text("there is no kernel of %d groups, %d tiles and %d parts of the gates for H %d", t.groups, t.phase,
                t.gate_splits, p.H);
  if (t.unit_blocks != divide_up(p.H, units_of_group(p) * t.groups) * t.gate_splits || t.row_tiles % t.phase ||
      t.row_tiles < 1 || t.row_blocks * t.row_tiles * 8 < p.B)
    return text("%d x %d blocks do not cover H %d and B %d", t.unit_blocks, t.row_blocks, p.H, p.B);
  if (p.layers > 1 && !runs_layers(p, spans, t))
    return text("there is no kernel of %d groups and %d tiles for several layers of H %d", t.groups, t.phase, p.H);
  if (p.layers * t.unit_blocks * t.row_blocks > gpu.sms)
    return text("%d blocks that wait for each other need as many multiprocessors, there are %d",
                p.layers * t.unit_blocks * t.row_blocks, gpu.sms);
  if (lean_bytes(p, t) > gpu.shared_bytes)
    return text("%.1f KiB of shared memory, a block gets %.0f", kib(double(lean_bytes(p, t))),
                kib(double(gpu.shared_bytes)));
  return "";
}

// No tiling was even looked at.
std::string none_offered(const Problem& p, int only) {
  return only == int(Kernel::single_block) ? text("%d units do not fit one block of %d warps", p.H, max_warps(true))
                                           : text("one block has all %d units, there is nothing to hand on", p.H);
}

std::string why_chosen(const Gpu& gpu, const Problem& p, const Choice& c) {
  const double weights = 4.0 * p.H * p.H * bytes_of(p.type);
  if (c.kernel == Kernel::single_block)
    return text("W_hh (%.0f KiB) fits one block: %.0f KiB of registers, %.0f KiB of shared memory", kib(weights),
                kib(c.register_weights), kib(c.shared_weights));
  if (c.kernel == Kernel::cooperative || c.kernel == Kernel::lean)
    return text("W_hh (%.0f KiB) fits %d of %d multiprocessors: %.0f KiB of registers, %.0f KiB of shared memory each",
                kib(weights), c.blocks, gpu.sms, kib(c.register_weights), kib(c.shared_weights));
  if (p.projected) return "a projection stands between two steps";
  const std::string wrong = unfit_type(gpu, p);
  return wrong.empty()
             ? text("W_hh (%.0f KiB) is kept nowhere; cuBLAS multiplies, one fused kernel a step follows", kib(weights))
             : wrong;
}

}  // namespace

const char* name_of(Kernel kernel) {
  constexpr const char* kNames[] = {"per_step", "single_block", "cooperative", "lean"};
  return kNames[int(kernel)];
}

std::string unfit(const Gpu& gpu, const Problem& p, Kernel kernel, const Tiling& t) {
  if (kernel == Kernel::per_step) return "";
  if (p.projected) return "a projection goes through per_step";
  if (const std::string wrong = unfit_type(gpu, p); !wrong.empty()) return wrong;
  if (kernel == Kernel::lean) return unfit_lean(gpu, p, t);
  const int units = units_of_group(p), span_units = 16 / bytes_of(p.type), columns = units * t.groups;
  const int warps = max_warps(kernel == Kernel::single_block);
  if (t.groups < 1 || t.k_splits < 1 || t.groups * t.k_splits > warps)
    return text("%d groups of %d warps, a block has at most %d warps", t.groups, t.k_splits, warps);
  if (t.phase < 1 || t.phase > t.row_tiles || (t.k_splits == 1 && t.phase > 1))
    return text("a phase of %d of %d row tiles with %d splits", t.phase, t.row_tiles, t.k_splits);
  if (t.gate_splits < 1 || columns % t.gate_splits || columns / t.gate_splits % std::max(8, span_units) ||
      (t.gate_splits > 1 && (!p.backward || kernel == Kernel::single_block)))
    return text("%d columns do not divide into %d parts", columns, t.gate_splits);
  if (t.unit_blocks != divide_up(p.H, columns) * t.gate_splits || t.row_blocks * t.row_tiles * 8 < p.B)
    return text("%d x %d blocks do not cover H %d and B %d", t.unit_blocks, t.row_blocks, p.H, p.B);
  if (kernel == Kernel::single_block && t.unit_blocks > 1)
    return text("W_hh of H %d does not stay in one block of %d warps", p.H, max_warps(true));
  if (kernel == Kernel::cooperative && t.unit_blocks * t.row_blocks > gpu.sms)
    return text("%d blocks that wait for each other need as many multiprocessors, there are %d",
                t.unit_blocks * t.row_blocks, gpu.sms);
  const Layout l = layout_of(p, kernel, t);
  if (int64_t(l.bytes) > gpu.shared_bytes)
    return text("%.1f KiB of shared memory, a block gets %.0f", kib(double(l.bytes)), kib(double(gpu.shared_bytes)));
  return "";
}

namespace {

StepWork work_of(const Gpu& gpu, const Problem& p, Kernel kernel, const Tiling& t) {
  if (kernel == Kernel::per_step) return per_step_work(gpu, p);
  if (kernel == Kernel::lean) return lean_work(gpu, p, t);
  return recurrent_work(p, kernel, t, layout_of(p, kernel, t));
}

}  // namespace

Choice describe(const Gpu& gpu, const Problem& p, Kernel kernel, const Tiling& t) {
  Choice c{};
  c.kernel = kernel;
  c.t = t;
  if (kernel == Kernel::lean) {
    const int spans = lean_spans(t, p.H, bytes_of(p.type), p.backward), matrices = p.chained ? 2 : 1;
    c.blocks = t.unit_blocks * t.row_blocks * p.layers;
    c.threads = kLeanThreads;
    c.shared_bytes = lean_bytes(p, t);
    c.shared_weights = lean_rest_bytes(spans, t.groups, p.backward, p.chained);
    c.register_weights = 4.0 * matrices * spans * t.groups * lean_words(p.backward) * kLeanThreads - c.shared_weights;
  } else if (kernel != Kernel::per_step) {
    const Layout l = layout_of(p, kernel, t);
    const int in_registers = std::min(spans_in_registers(p, kernel), l.spans_per_warp);
    c.blocks = t.unit_blocks * t.row_blocks;
    c.threads = 32 * l.warps;
    c.shared_bytes = int64_t(l.bytes);
    c.register_weights = double(l.warps) * in_registers * pieces_of(p) * kWeightBytes;
    c.shared_weights = double(l.operand);
  }
  c.work = work_of(gpu, p, kernel, t);
  const Prediction predicted = predict(gpu, p.type, c.work);
  c.us = predicted.us;
  c.bound = part_name(predicted.bound());
  c.why = why_chosen(gpu, p, c);
  return c;
}

Choice plan_layers(const Gpu& gpu, const Problem& p) {
  Choice best{};
  best.blocks = -1;
  for_lean_tilings(p, [&](const Tiling& t) {
    const std::string wrong = unfit(gpu, p, Kernel::lean, t);
    if (wrong.empty()) {
      const Choice c = describe(gpu, p, Kernel::lean, t);
      if (best.blocks < 0 || c.us < best.us) best = c;
    } else if (best.blocks < 0) {
      best.why = wrong;
    }
  });
  return best;
}

std::vector<Choice> tilings(const Gpu& gpu, const Problem& p) {
  std::vector<Choice> all;
  for_tilings(p, [&](Kernel kernel, const Tiling& t) {
    if (unfit(gpu, p, kernel, t).empty()) all.push_back(describe(gpu, p, kernel, t));
  });
  std::stable_sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) {
    return std::tie(a.us, a.work.l2_rounds) < std::tie(b.us, b.work.l2_rounds);
  });
  return all;
}

Choice plan(const Gpu& gpu, const Problem& p, int only) {
  struct {
    double us, rounds;
    Kernel kernel;
    Tiling t;
  } best{-1, 0, Kernel::per_step, {}};
  std::string reason;
  const auto offer = [&](Kernel kernel, const Tiling& t) {
    if (only >= 0 && only != int(kernel)) return;
    if (const std::string wrong = unfit(gpu, p, kernel, t); !wrong.empty()) {
      reason = wrong;
      return;
    }
    const StepWork work = work_of(gpu, p, kernel, t);
    const double us = predict(gpu, p.type, work).us;
    if (best.us < 0 || std::tie(us, work.l2_rounds) < std::tie(best.us, best.rounds))
      best = {us, work.l2_rounds, kernel, t};
  };
  for_tilings(p, offer);
  offer(Kernel::per_step, Tiling{});
  if (best.us >= 0) return describe(gpu, p, best.kernel, best.t);
  Choice none{};
  none.blocks = -1;
  none.why = reason.empty() ? none_offered(p, only) : reason;
  return none;
}

}  // namespace fastlstm::cuda
