// The interpreter of inline PTX. A kernel's asm text is the only statement of an instruction: nvcc assembles it, the
// simulation runs it. So an operand changed in the text changes what the tests see.
#pragma once
#include <string>
#include <vector>

#include "engine.h"

namespace hostsim {

// One word of an operand group: a reference (%0), a literal, or anything else, which only its text tells.
struct Word {
  std::string text;
  size_t number = none;  // of a reference
  uint64_t literal = 0;
  static constexpr size_t none = ~size_t(0);
};

// "op.sfx {%0, %1}, [%2], 16;" taken apart: opcode, and per operand group its words.
struct Ptx {
  std::string opcode;
  std::vector<std::vector<Word>> groups;
};
Ptx parse(const std::string& text);

// Reads one text as another from now on; empty: all as they are. And the texts that have run since.
void rewrite(const std::string& text, const std::string& as);
std::vector<std::string> texts();

// Operands of one execution; get and set check widths.
class Frame {
 public:
  Frame(const Ptx& code, const Operand* out, size_t outs, const Operand* in, size_t ins, Site site)
      : code(code), site(site), out_(out), in_(in), outs_(outs), ins_(ins) {}
  uint64_t get(size_t group, size_t item, const char* kinds) const;
  void set(size_t group, size_t item, const char* kinds, uint64_t value) const;
  size_t width(size_t group) const { return code.groups.at(group).size(); }
  void expect(std::initializer_list<size_t> widths) const;

  const Ptx& code;
  Site site;

 private:
  const Operand& operand(const Word& word, const char* kinds) const;
  const Operand* out_;
  const Operand* in_;
  size_t outs_, ins_;
};

using Run = void (*)(Frame&);
Run find_matrix(const std::string& opcode);  // ptx_matrix.cpp
Run find_memory(const std::string& opcode);  // ptx_memory.cpp
Run find_scalar(const std::string& opcode);  // ptx_scalar.cpp

// Row and column of element `index` of a fragment that `lane` holds ('a', 'b' or 'c' of an mma shape, for the tests).
struct Position {
  int row, column;
};
Position position_of(const std::string& shape, char matrix, int lane, int index);

// Numbers (ptx_scalar.cpp)
float from_half(uint16_t bits);
uint16_t to_half(float value);
float from_bfloat(uint16_t bits);
uint16_t to_bfloat(float value);
inline float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t as_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

}  // namespace hostsim
