// Conversions, approximate functions, the clock.
#include <cmath>

#include "ptx.h"

namespace hostsim {

float from_half(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent) return as_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = std::ldexp(float(mantissa), -24);
  return sign ? -magnitude : magnitude;
}

// Round to nearest, ties to even.
uint16_t to_half(float value) {
  const uint32_t bits = as_bits(value);
  const auto sign = uint16_t(bits >> 16 & 0x8000);
  if (std::isnan(value)) return 0x7fff;  // what the hardware returns
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) return uint16_t(sign | uint16_t(std::nearbyint(std::ldexp(magnitude, 24))));
  const uint32_t rounded = as_bits(magnitude) + 0xfff + (bits >> 13 & 1);
  return uint16_t(sign | ((rounded >> 13) - (112u << 10)));
}

float from_bfloat(uint16_t bits) { return as_float(uint32_t(bits) << 16); }

uint16_t to_bfloat(float value) {
  const uint32_t bits = as_bits(value);
  if (std::isnan(value)) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

namespace {

float get_float(Frame& f, size_t group) { return as_float(uint32_t(f.get(group, 0, "f"))); }

void half_to_float(Frame& f) { f.set(0, 0, "f", as_bits(from_half(uint16_t(f.get(1, 0, "h"))))); }
void float_to_half(Frame& f) { f.set(0, 0, "h", to_half(get_float(f, 1))); }
void float_to_bfloat(Frame& f) { f.set(0, 0, "h", to_bfloat(get_float(f, 1))); }

// Nearest, ties away from zero: 13 bits of the mantissa go.
void float_to_tf32(Frame& f) {
  const auto bits = uint32_t(f.get(1, 0, "f"));
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  f.set(0, 0, "r", finite ? (bits + 0x1000u) & 0xffffe000u : bits & 0xffffe000u);
}

void exp2_approximate(Frame& f) { f.set(0, 0, "f", as_bits(std::exp2(get_float(f, 1)))); }
void reciprocal_approximate(Frame& f) { f.set(0, 0, "f", as_bits(1.0f / get_float(f, 1))); }

void move_64(Frame& f) {
  const std::string& from = f.code.groups.at(1).at(0).text;
  if (from != "%%globaltimer") engine().fault("PTX: mov.u64 of " + from);
  f.set(0, 0, "l", engine().now);
}

void trap(Frame& f) { engine().fault("trap at " + at(f.site)); }

struct Entry {
  const char* opcode;
  Run run;
};
const Entry entries[] = {
    {"cvt.f32.f16", half_to_float},
    {"cvt.rn.f16.f32", float_to_half},
    {"cvt.rn.bf16.f32", float_to_bfloat},
    {"cvt.rna.tf32.f32", float_to_tf32},
    {"ex2.approx.ftz.f32", exp2_approximate},
    {"rcp.approx.ftz.f32", reciprocal_approximate},
    {"mov.u64", move_64},
    {"trap", trap},
};

}  // namespace

Run find_scalar(const std::string& opcode) {
  for (const Entry& entry : entries)
    if (opcode == entry.opcode) return entry.run;
  return nullptr;
}

}  // namespace hostsim
