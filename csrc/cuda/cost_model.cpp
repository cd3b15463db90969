#include "cost_model.h"

#include <algorithm>
#include <cctype>
#include <cmath>

namespace fastlstm::cuda {
namespace {

constexpr double kSharedRate = 128;  // bytes a clock of one SM
constexpr double kL2Rate = 48;       // bytes a clock that one SM can take in, when few ask

constexpr const char* kPartNames[] = {
#define FASTLSTM_NAME(name, value, part, meaning) part,
    FASTLSTM_COST(FASTLSTM_NAME)
#undef FASTLSTM_NAME
        "HBM"};
static_assert(std::size(kPartNames) == Prediction::kCosts + 1);

double rate_of(const Gpu& gpu, Type type) {
  return std::max(1e-9, type == Type::f32 ? gpu.fma : type == Type::tf32 ? gpu.tf32 : gpu.half);
}

Gpu device(const char* name, int capability, int sms, double ghz, double hbm_gbs, double l2_gbs, int shared_kib,
           double fma, double half, double tf32) {
  return {name, capability, sms, ghz, hbm_gbs, l2_gbs, int64_t(shared_kib) << 10, fma, half, tf32, {}};
}

// Whether a device's name has the model in it as words of its own: an "RTX A1000" is no A100.
bool has_words(const std::string& name, const std::string& model) {
  for (size_t at = name.find(model); at != std::string::npos; at = name.find(model, at + 1)) {
    const size_t end = at + model.size();
    const bool begins = at == 0 || !std::isalnum(static_cast<unsigned char>(name[at - 1]));
    if (begins && (end == name.size() || !std::isalnum(static_cast<unsigned char>(name[end])))) return true;
  }
  return false;
}

}  // namespace

const char* part_name(int part) { return kPartNames[part]; }

int Prediction::bound() const { return int(std::max_element(parts.begin(), parts.end()) - parts.begin()); }

Prediction predict(const Gpu& gpu, Type type, const StepWork& w) {
  const Cost& c = gpu.cost;
  const double sharing = std::min(std::max(w.blocks, 1.0), double(gpu.sms));
  const double l2_rate = std::min(kL2Rate, gpu.l2_gbs / gpu.ghz / sharing);
  const double us = std::ceil(w.blocks / gpu.sms) * 1e-3 / gpu.ghz;  // of a clock, in as many waves as there are
  Prediction p;
  p.parts = {c.l2_excess * w.l2_bytes / l2_rate * us,
             c.shared_excess * w.shared_bytes / kSharedRate * us,
             c.product_excess * w.products / rate_of(gpu, type) * us,
             c.l2_clocks * w.l2_rounds * us,
             c.kept_span_clocks * w.kept_spans * us,
             c.register_span_clocks * w.register_spans * us,
             c.step_clocks * w.steps * us,
             c.forward_cell_clocks * w.forward_cells * us,
             c.backward_cell_clocks * w.backward_cells * us,
             c.slot_clocks * w.issue_slots * us,
             c.barrier_clocks * w.barriers * us,
             c.partial_clocks * w.partial_sums * us,
             c.gather_clocks * w.gathers * us,
             c.gather_kib_clocks * w.gathered_kib * us,
             c.pass_clocks * w.passes * us,
             c.grid_wait_us * w.grid_waits,
             c.launch_us * w.launches,
             w.hbm_bytes / gpu.hbm_gbs * 1e-3};
  p.us = *std::max_element(p.parts.begin(), p.parts.begin() + Prediction::kChain);
  for (int i = Prediction::kChain; i < Prediction::kCosts; ++i) p.us += p.parts[i];
  p.us = std::max(p.us, p.parts[Prediction::kHbm]);
  return p;
}

double activation_bytes(int H, int B, int type_bytes, bool keeping) {
  return double(B) * H * (4 * type_bytes + type_bytes + (keeping ? 4 * type_bytes + 4 : 0));
}

double floor_us(const Gpu& gpu, Type type, int H, int B) {
  const double clocks_a_us = gpu.sms * gpu.ghz * 1e3, weights = 4.0 * H * H;
  return std::max({weights * B / (rate_of(gpu, type) * clocks_a_us),
                   weights * bytes_of(type) / (kSharedRate * clocks_a_us),
                   activation_bytes(H, B, bytes_of(type), false) / gpu.hbm_gbs * 1e-3});
}

const std::vector<Gpu>& devices() {
  // From datasheets and public microbenchmarks.
  static const std::vector<Gpu> all = {
      //                   SMs  GHz    HBM   L2    shared fma half tf32
      //                              GB/s  GB/s  KiB
      device("T4", 75, 40, 1.59, 320, 1270, 64, 64, 512, 0),
      device("A100", 80, 108, 1.41, 2039, 4400, 163, 64, 1024, 512),
      device("RTX 3090", 86, 82, 1.70, 936, 2300, 99, 128, 256, 128),
      device("RTX 4090", 89, 128, 2.52, 1008, 5000, 99, 128, 256, 128),
      device("H100", 90, 132, 1.755, 3350, 5500, 227, 128, 1280, 640),
      device("H200", 90, 132, 1.755, 4800, 5500, 227, 128, 1280, 640),
      device("B200", 100, 148, 1.85, 8000, 8000, 227, 128, 1280, 640),
      device("RTX 5090", 120, 170, 2.41, 1792, 6500, 99, 128, 256, 128),
  };
  return all;
}

Gpu known(const std::string& name, int capability, int sms, int64_t shared_bytes) {
  const Gpu* alike = nullptr;
  for (const Gpu& d : devices())
    if (d.capability == capability && has_words(name, d.name)) alike = &d;
  if (!alike)
    for (const Gpu& d : devices())
      if (d.capability <= capability && (!alike || d.capability > alike->capability)) alike = &d;
  Gpu gpu = alike ? *alike : devices().front();
  const double share = double(sms) / gpu.sms;
  gpu.name = name, gpu.capability = capability, gpu.sms = sms, gpu.shared_bytes = shared_bytes;
  gpu.hbm_gbs *= share, gpu.l2_gbs *= share;
  return gpu;
}

}  // namespace fastlstm::cuda
