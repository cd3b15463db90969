// mma.sync and ldmatrix, with the layouts of the PTX ISA manual ("Matrix fragments for mma.m16n8k…").
#include <memory>

#include "ptx.h"

namespace hostsim {
namespace {

enum class Type { half, bfloat, tf32 };

struct Shape {
  const char* name;
  int k;
  int per_word;  // elements of A and B in one 32-bit register
  int a, b;      // elements of A and B a lane holds
};
constexpr Shape shapes[] = {{"m16n8k16.16", 16, 2, 8, 4}, {"m16n8k8.16", 8, 2, 4, 2}, {"m16n8k8.tf32", 8, 1, 4, 2}};

float decode(Type type, uint32_t word, int part) {
  if (type == Type::tf32) return as_float(word & 0xffffe000u);  // the hardware ignores 13 bits of the mantissa
  const auto bits = uint16_t(word >> 16 * part);
  return type == Type::half ? from_half(bits) : from_bfloat(bits);
}

Position position(const Shape& shape, char matrix, int lane, int i) {
  const int group = lane / 4, in_group = lane % 4;
  if (matrix == 'c') return {group + 8 * (i / 2), 2 * in_group + i % 2};
  if (shape.per_word == 1) {
    if (matrix == 'a') return {group + 8 * (i % 2), in_group + 4 * (i / 2)};
    return {in_group + 4 * i, group};
  }
  if (matrix == 'a') return {group + 8 * (i / 2 % 2), 2 * in_group + i % 2 + 8 * (i / 4)};
  return {2 * in_group + i % 2 + 8 * (i / 2), group};
}

struct Fragments {
  uint32_t a[4], b[2];
  float c[4], d[4];
};

template <int S, Type type>
void multiply(void** lanes) {
  constexpr Shape shape = shapes[S];
  static float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& f = *static_cast<Fragments*>(lanes[lane]);
    for (int i = 0; i < shape.a; ++i) {
      const Position p = position(shape, 'a', lane, i);
      a[p.row][p.column] = decode(type, f.a[i / shape.per_word], i % shape.per_word);
    }
    for (int i = 0; i < shape.b; ++i) {
      const Position p = position(shape, 'b', lane, i);
      b[p.row][p.column] = decode(type, f.b[i / shape.per_word], i % shape.per_word);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto& f = *static_cast<Fragments*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const Position p = position(shape, 'c', lane, i);
      float sum = f.c[i];
      for (int k = 0; k < shape.k; ++k) sum += a[p.row][k] * b[k][p.column];
      f.d[i] = sum;
    }
  }
}

template <int S, Type type>
void mma(Frame& frame) {
  constexpr Shape shape = shapes[S];
  constexpr size_t a_words = shape.a / shape.per_word, b_words = shape.b / shape.per_word;
  frame.expect({4, a_words, b_words, 4});
  Fragments f;
  for (size_t i = 0; i < a_words; ++i) f.a[i] = uint32_t(frame.get(1, i, "r"));
  for (size_t i = 0; i < b_words; ++i) f.b[i] = uint32_t(frame.get(2, i, "r"));
  for (size_t i = 0; i < 4; ++i) f.c[i] = as_float(uint32_t(frame.get(3, i, "f")));
  warp_operation(~0u, "mma.sync", frame.site, &f, multiply<S, type>);
  for (size_t i = 0; i < 4; ++i) frame.set(0, i, "f", as_bits(f.d[i]));
}

struct Rows {
  uint32_t address;  // of the row this lane names
  uint32_t count;    // 8x8 matrices
  bool transposed;
  uint32_t words[4];
};

// Row r of matrix m is named by lane 8m + r; lane l gets elements 2 (l % 4) and the next of row l / 4.
void load_matrices(void** lanes) {
  Engine& e = engine();
  Region& shared = e.current->block->shared;
  static uint16_t matrix[8][8];
  const auto& first = *static_cast<Rows*>(lanes[0]);
  for (uint32_t m = 0; m < first.count; ++m) {
    for (uint32_t r = 0; r < 8; ++r) {
      const auto& named = *static_cast<Rows*>(lanes[8 * m + r]);
      const uintptr_t where = shared.base + named.address;
      if (where % 16) e.fault("misaligned: ldmatrix of a row at shared address " + std::to_string(named.address));
      check_anywhere({where, 16, Kind::read, false, nullptr});
      memcpy(matrix[r], reinterpret_cast<const void*>(where), 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto& mine = *static_cast<Rows*>(lanes[lane]);
      const int r = lane / 4, c = 2 * (lane % 4);
      const uint32_t low = first.transposed ? matrix[c][r] : matrix[r][c];
      const uint32_t high = first.transposed ? matrix[c + 1][r] : matrix[r][c + 1];
      mine.words[m] = low | high << 16;
    }
  }
}

template <uint32_t Count, bool Transposed>
void ldmatrix(Frame& frame) {
  frame.expect({Count, 1});
  Rows rows{uint32_t(frame.get(1, 0, "r")), Count, Transposed, {}};
  warp_operation(~0u, "ldmatrix", frame.site, &rows, load_matrices);
  for (size_t i = 0; i < Count; ++i) frame.set(0, i, "r", rows.words[i]);
}

struct Entry {
  const char* opcode;
  Run run;
};
const Entry entries[] = {
    {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", mma<0, Type::half>},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", mma<0, Type::bfloat>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", mma<1, Type::half>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", mma<1, Type::bfloat>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", mma<2, Type::tf32>},
    {"ldmatrix.sync.aligned.m8n8.x1.shared.b16", ldmatrix<1, false>},
    {"ldmatrix.sync.aligned.m8n8.x2.shared.b16", ldmatrix<2, false>},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", ldmatrix<4, false>},
    {"ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16", ldmatrix<1, true>},
    {"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", ldmatrix<2, true>},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", ldmatrix<4, true>},
};

}  // namespace

Run find_matrix(const std::string& opcode) {
  for (const Entry& entry : entries)
    if (opcode == entry.opcode) return entry.run;
  return nullptr;
}

Position position_of(const std::string& shape, char matrix, int lane, int index) {
  for (const Shape& known : shapes)
    if (shape == known.name) return position(known, matrix, lane, index);
  throw std::invalid_argument("no mma shape '" + shape + "'");
}

}  // namespace hostsim
