#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace fastlstm::cuda {
namespace {

int bytes_of(Type type) { return type == Type::f16 || type == Type::bf16 ? 2 : 4; }
int pieces_of(const Problem& p) { return p.backward ? kBackwardPieces : kForwardPieces; }
int units_of_group(const Problem& p) { return p.backward ? 16 : 8; }

int spans_in_registers(const Problem& p) { return register_spans(p.type == Type::f32, pieces_of(p)); }

double rate_of(const Gpu& gpu, Type type) {
  return type == Type::f32 ? gpu.fma : type == Type::tf32 ? gpu.tf32 : gpu.half;
}

Layout layout_of(const Problem& p, Kernel kernel, const Tiling& t) {
  const auto lay = p.backward ? backward_layout : forward_layout;
  return lay(t, p.H, bytes_of(p.type), spans_in_registers(p), kernel == Kernel::tile);
}

double kib(double bytes) { return bytes / 1024; }

template <class... Values>
std::string text(const char* format, Values... values) {
  char line[240];
  snprintf(line, sizeof line, format, values...);
  return line;
}

// gpu_model.predict, in the same words.
double microseconds(const Gpu& gpu, const Work& w, double rate) {
  const double waves = std::ceil(w.blocks / gpu.sms), clock_us = 1e-3 / gpu.ghz;
  const double sharing = std::min(std::max(w.blocks, 1.0), double(gpu.sms));
  const double l2_rate = std::min(64.0 * gpu.efficiency, gpu.l2_gbs / gpu.ghz / sharing);
  const double l2 = waves * w.l2_bytes / l2_rate, shared = waves * w.shared_bytes / 128.0;
  const double products = waves * w.products / std::max(rate * gpu.efficiency, 1e-9);
  const double cell = waves * w.cells * gpu.cell_clocks / 128.0;
  const double waits = w.barriers * gpu.barrier_clocks + w.l2_rounds * gpu.l2_clocks;
  const double chain = (std::max({l2, shared, products}) + cell + waits) * clock_us + w.launches * gpu.launch_us +
                       w.grid_waits * gpu.grid_wait_us;
  return std::max(chain, w.hbm_bytes / gpu.hbm_gbs * 1e-3);
}

// Input side, gates, h and the float cell state of one step; backward moves the same.
double activations(const Problem& p) { return double(p.B) * p.H * (9 * bytes_of(p.type) + 4); }

Work step_work(const Gpu& gpu, const Problem& p) {
  const double size = bytes_of(p.type), share = divide_up(4 * p.H, gpu.sms), padded = 16 * divide_up(p.B, 16);
  Work w{};
  w.blocks = gpu.sms;
  w.l2_bytes = (share + p.B) * p.H * size;
  w.shared_bytes = share * p.H * size;
  w.products = share * p.H * padded;
  w.cells = share / 4 * padded;
  w.barriers = 4, w.launches = 2, w.l2_rounds = 8;
  w.hbm_bytes = activations(p);
  return w;
}

Work recurrent_work(const Problem& p, Kernel kernel, const Tiling& t, const Layout& l) {
  const double rows = 8.0 * t.row_tiles, spans = l.spans, in_registers = spans_in_registers(p);
  const double kept = std::max(0.0, l.spans_per_warp - in_registers), pieces = pieces_of(p);
  const double operand_reads = p.type == Type::f32 ? 1024 : 512;  // bytes of shared memory for a span and 8 sequences
  const double phases = t.k_splits > 1 ? divide_up(t.row_tiles, t.phase) : 0;
  Work w{};
  w.blocks = double(t.unit_blocks) * t.row_blocks;
  w.products = 64.0 * t.groups * pieces * spans * (16.0 / bytes_of(p.type)) / 2 * rows;
  w.shared_bytes = t.row_tiles * (l.warps * kept * pieces * kWeightBytes + t.groups * spans * operand_reads);
  w.cells = units_of_group(p) * t.groups / double(t.gate_splits) * rows;
  w.barriers = phases + (kernel == Kernel::tile ? 1 : 0);
  w.hbm_bytes = activations(p);
  if (kernel == Kernel::persistent) {
    const double partial = t.gate_splits > 1 ? 8.0 * units_of_group(p) * t.groups * rows : 0;
    w.l2_bytes = t.groups * spans * 64 * rows + partial;
    w.grid_waits = t.gate_splits > 1 ? 2 : 1;
  }
  return w;
}

// f(tiling) for everything worth a look. Smaller numbers first: of two equally good, the first wins.
template <class F>
void for_tilings(const Problem& p, F f) {
  const int units = units_of_group(p), row_tiles_of_call = divide_up(std::max(p.B, 1), 8);
  for (int groups = 1; groups <= kMaxWarps; ++groups) {
    if (groups > 1 && (groups - 1) * units >= p.H) break;
    for (int splits = 1; groups * splits <= kMaxWarps; splits *= 2)
      for (int tiles = 1; tiles <= 16; tiles *= 2) {
        const int row_tiles = std::min(tiles, row_tiles_of_call);
        for (int parts = 1; parts <= (p.backward ? 2 * groups : 1); parts *= 2)
          for (int phase = 1; phase <= (splits > 1 ? std::min(row_tiles, 4) : 1); phase *= 2)
            f(Tiling{divide_up(p.H, units * groups) * parts, divide_up(row_tiles_of_call, row_tiles), groups, splits,
                     row_tiles, phase, parts});
        if (row_tiles < tiles) break;
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

// No tiling was even looked at.
std::string none_offered(const Problem& p, int only) {
  return only == int(Kernel::tile) ? text("%d units do not fit one block of %d warps", p.H, kMaxWarps)
                                   : text("one block has all %d units, there is nothing to hand on", p.H);
}

std::string why_chosen(const Gpu& gpu, const Problem& p, const Choice& c) {
  const double weights = 4.0 * p.H * p.H * bytes_of(p.type);
  if (c.kernel == Kernel::tile)
    return text("W_hh (%.0f KiB) fits one block: %.0f KiB of registers, %.0f KiB of shared memory", kib(weights),
                kib(c.register_weights), kib(c.shared_weights));
  if (c.kernel == Kernel::persistent)
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
  return kernel == Kernel::step ? "step" : kernel == Kernel::tile ? "tile" : "persistent";
}

std::string unfit(const Gpu& gpu, const Problem& p, Kernel kernel, const Tiling& t) {
  if (kernel == Kernel::step) return "";
  if (p.projected) return "a projection goes through step";
  if (const std::string wrong = unfit_type(gpu, p); !wrong.empty()) return wrong;
  const int units = units_of_group(p), span_units = 16 / bytes_of(p.type), columns = units * t.groups;
  if (t.groups < 1 || t.k_splits < 1 || t.groups * t.k_splits > kMaxWarps)
    return text("%d groups of %d warps, a block has at most %d warps", t.groups, t.k_splits, kMaxWarps);
  if (t.phase < 1 || t.phase > t.row_tiles || (t.k_splits == 1 && t.phase > 1))
    return text("a phase of %d of %d row tiles with %d splits", t.phase, t.row_tiles, t.k_splits);
  if (t.gate_splits < 1 || columns % t.gate_splits || columns / t.gate_splits % std::max(8, span_units) ||
      (t.gate_splits > 1 && (!p.backward || kernel == Kernel::tile)))
    return text("%d columns do not divide into %d parts", columns, t.gate_splits);
  if (t.unit_blocks != divide_up(p.H, columns) * t.gate_splits || t.row_blocks * t.row_tiles * 8 < p.B)
    return text("%d x %d blocks do not cover H %d and B %d", t.unit_blocks, t.row_blocks, p.H, p.B);
  if (kernel == Kernel::tile && t.unit_blocks > 1)
    return text("W_hh of H %d does not stay in one block of %d warps", p.H, kMaxWarps);
  if (kernel == Kernel::persistent && t.unit_blocks * t.row_blocks > gpu.sms)
    return text("%d blocks that wait for each other need as many multiprocessors, there are %d",
                t.unit_blocks * t.row_blocks, gpu.sms);
  const Layout l = layout_of(p, kernel, t);
  if (int64_t(l.bytes) > gpu.shared_bytes)
    return text("%.1f KiB of shared memory, a block gets %.0f", kib(double(l.bytes)), kib(double(gpu.shared_bytes)));
  return "";
}

Choice describe(const Gpu& gpu, const Problem& p, Kernel kernel, const Tiling& t) {
  Choice c{};
  c.kernel = kernel;
  c.t = t;
  if (kernel == Kernel::step) {
    c.work = step_work(gpu, p);
  } else {
    const Layout l = layout_of(p, kernel, t);
    const int pieces = pieces_of(p), in_registers = std::min(spans_in_registers(p), l.spans_per_warp);
    c.blocks = t.unit_blocks * t.row_blocks;
    c.threads = 32 * l.warps;
    c.shared_bytes = int64_t(l.bytes);
    c.register_weights = double(l.warps) * in_registers * pieces * kWeightBytes;
    c.shared_weights = double(l.operand);
    c.work = recurrent_work(p, kernel, t, l);
  }
  c.us = microseconds(gpu, c.work, rate_of(gpu, p.type));
  c.why = why_chosen(gpu, p, c);
  return c;
}

Choice plan(const Gpu& gpu, const Problem& p, int only) {
  Choice best{};
  best.blocks = -1;
  std::string reason;
  const auto offer = [&](Kernel kernel, const Tiling& t) {
    if (only >= 0 && only != int(kernel)) return;
    const std::string wrong = unfit(gpu, p, kernel, t);
    if (!wrong.empty()) {
      reason = wrong;
      return;
    }
    Choice choice = describe(gpu, p, kernel, t);
    if (best.blocks < 0 || choice.us < best.us) best = std::move(choice);
  };
  for_tilings(p, [&](const Tiling& t) { offer(t.unit_blocks == 1 ? Kernel::tile : Kernel::persistent, t); });
  offer(Kernel::step, Tiling{});
  if (best.blocks < 0) best.why = reason.empty() ? none_offered(p, only) : reason;
  return best;
}

}  // namespace fastlstm::cuda
