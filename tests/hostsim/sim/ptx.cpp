#include "ptx.h"

#include <cctype>
#include <unordered_map>
#include <utility>

namespace hostsim {
namespace {

struct Decoded {
  Ptx code;
  Run run;
};

std::unordered_map<const void*, Decoded> known;          // by address: one entry per place in the source
std::unordered_map<std::string, std::string> rewritten;  // texts that a test wants read as others

const Decoded& decode(const char* text) {
  const auto found = known.find(text);
  if (found != known.end()) return found->second;
  const auto other = rewritten.find(text);
  Decoded made{parse(other == rewritten.end() ? text : other->second), nullptr};
  for (const auto find : {find_matrix, find_memory, find_scalar})
    if (!made.run) made.run = find(made.code.opcode);
  if (!made.run) engine().fault("PTX: the simulation does not know '" + std::string(text) + "'");
  return known.emplace(text, made).first->second;
}

}  // namespace

void rewrite(const std::string& text, const std::string& as) {
  known.clear();
  rewritten.clear();
  if (!text.empty()) rewritten[text] = as;
}

std::vector<std::string> texts() {
  std::vector<std::string> all;
  for (const auto& [address, decoded] : known) all.emplace_back(static_cast<const char*>(address));
  return all;
}

namespace {
Word word_of(const std::string& text) {
  Word word{text, Word::none, 0};
  const size_t digits = text[0] == '%';
  const bool number = text.size() > digits && text.find_first_not_of("0123456789", digits) == std::string::npos;
  if (number && digits)
    word.number = std::stoul(text.substr(1));
  else if (number)
    word.literal = std::stoull(text);
  return word;
}
}  // namespace

Ptx parse(const std::string& text) {
  Ptx ptx;
  size_t i = 0;
  while (i < text.size() && !isspace(text[i]) && text[i] != ';') ptx.opcode += text[i++];
  std::vector<Word> group;
  std::string word;
  int depth = 0;
  const auto end_word = [&] {
    if (!word.empty()) group.push_back(word_of(word));
    word.clear();
  };
  for (; i < text.size() && text[i] != ';'; ++i) {
    const char c = text[i];
    if (c == '{' || c == '[')
      ++depth;
    else if (c == '}' || c == ']')
      --depth;
    else if (c == ',') {
      end_word();
      if (!depth) ptx.groups.push_back(std::exchange(group, {}));
    } else if (!isspace(c))
      word += c;
  }
  end_word();
  if (!group.empty()) ptx.groups.push_back(group);
  return ptx;
}

const Operand& Frame::operand(const Word& word, const char* kinds) const {
  if (word.number >= outs_ + ins_)
    engine().fault("PTX: " + code.opcode + " at " + at(site) + " has no operand " + word.text);
  const Operand& operand = word.number < outs_ ? out_[word.number] : in_[word.number - outs_];
  if (!strchr(kinds, operand.kind))
    engine().fault("PTX: " + code.opcode + " at " + at(site) + ": operand " + word.text + " is '" + operand.kind +
                   "', expected one of '" + kinds + "'");
  return operand;
}

uint64_t Frame::get(size_t group, size_t item, const char* kinds) const {
  const Word& word = code.groups.at(group).at(item);
  return word.text[0] == '%' ? operand(word, kinds).value : word.literal;
}

void Frame::set(size_t group, size_t item, const char* kinds, uint64_t value) const {
  const Operand& o = operand(code.groups.at(group).at(item), kinds);
  if (!o.target) engine().fault("PTX: " + code.opcode + " at " + at(site) + " writes an input operand");
  const size_t bytes = o.kind == 'h' ? 2 : o.kind == 'l' ? 8 : 4;
  memcpy(o.target, &value, bytes);
}

void Frame::expect(std::initializer_list<size_t> widths) const {
  bool right = code.groups.size() == widths.size();
  size_t i = 0;
  for (const size_t width : widths) right = right && code.groups[i++].size() == width;
  if (!right) engine().fault("PTX: " + code.opcode + " at " + at(site) + " has operands of the wrong number");
}

void ptx(const char* text, const Operand* out, size_t outs, const Operand* in, size_t ins, const char* file, int line) {
  const Decoded& decoded = decode(text);
  engine().current->site = {file, line};
  Frame frame(decoded.code, out, outs, in, ins, {file, line});
  decoded.run(frame);
}

}  // namespace hostsim
