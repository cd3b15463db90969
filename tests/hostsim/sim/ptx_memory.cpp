// Loads and stores that threads of several blocks may do at once, and asynchronous copies.
#include "ptx.h"

namespace hostsim {
namespace {

enum Order { relaxed, ordered };

template <uint32_t Words, Order order>
void load(Frame& frame) {
  frame.expect({Words, 1});
  Engine& e = engine();
  const auto where = uintptr_t(frame.get(1, 0, "l"));
  if (where % (4 * Words)) e.fault("misaligned: " + frame.code.opcode + " at " + at(frame.site));
  e.yield(State::polling, "a load that other blocks answer", frame.site);
  check_anywhere({where, 4 * Words, Kind::read, true, nullptr});
  if (order == ordered) note_acquire(where);
  const auto* words = reinterpret_cast<const volatile uint32_t*>(where);
  for (size_t i = 0; i < Words; ++i) frame.set(0, i, "r", words[i]);
}

template <uint32_t Words, Order order>
void store(Frame& frame) {
  frame.expect({1, Words});
  Engine& e = engine();
  const auto where = uintptr_t(frame.get(0, 0, "l"));
  if (where % (4 * Words)) e.fault("misaligned: " + frame.code.opcode + " at " + at(frame.site));
  check_anywhere({where, 4 * Words, Kind::write, true, nullptr});
  if (order == ordered) note_release(where);
  auto* words = reinterpret_cast<volatile uint32_t*>(where);
  for (size_t i = 0; i < Words; ++i) words[i] = uint32_t(frame.get(1, i, "r"));
}

// One word of 64 bits: read and written whole.
void load_long(Frame& frame) {
  frame.expect({1, 1});
  Engine& e = engine();
  const auto where = uintptr_t(frame.get(1, 0, "l"));
  if (where % 8) e.fault("misaligned: " + frame.code.opcode + " at " + at(frame.site));
  e.yield(State::polling, "a load that other blocks answer", frame.site);
  check_anywhere({where, 8, Kind::read, true, nullptr});
  frame.set(0, 0, "l", *reinterpret_cast<const volatile uint64_t*>(where));
}

void store_long(Frame& frame) {
  frame.expect({1, 1});
  const auto where = uintptr_t(frame.get(0, 0, "l"));
  if (where % 8) engine().fault("misaligned: " + frame.code.opcode + " at " + at(frame.site));
  check_anywhere({where, 8, Kind::write, true, nullptr});
  *reinterpret_cast<volatile uint64_t*>(where) = frame.get(1, 0, "l");
}

void mark(const Copy& copy, Byte state) {
  Region& shared = engine().current->block->shared;
  for (uint32_t i = 0; i < copy.bytes; ++i) shared.bytes[copy.to - shared.base + i] = state;
}

// Nothing is copied yet: the target may not be touched until the copy lands, and the source is read as late as allowed.
template <uint32_t Only>
void copy(Frame& frame) {
  frame.expect({1, 1, 1});
  Engine& e = engine();
  Region& shared = e.current->block->shared;
  const Copy copy{shared.base + uint32_t(frame.get(0, 0, "r")), uintptr_t(frame.get(1, 0, "l")),
                  uint32_t(frame.get(2, 0, "r"))};
  const bool size_allowed = copy.bytes == 16 || (!Only && (copy.bytes == 4 || copy.bytes == 8));
  if (!size_allowed || copy.to % copy.bytes || copy.from % copy.bytes)
    e.fault("misaligned: " + frame.code.opcode + " of " + std::to_string(copy.bytes) + " bytes at " + at(frame.site));
  check_anywhere({copy.to, copy.bytes, Kind::write, false, nullptr});
  check_anywhere({copy.from, copy.bytes, Kind::read, false, nullptr});
  mark(copy, Byte::arriving);
  e.current->copies.push_back(copy);
}

void commit(Frame&) {
  Thread& self = *engine().current;
  self.groups.push_back(std::move(self.copies));
  self.copies.clear();
}

void land(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    mark(copy, Byte::unwritten);
    check_anywhere({copy.from, copy.bytes, Kind::read, false, nullptr});
    check_anywhere({copy.to, copy.bytes, Kind::write, false, nullptr});
    memcpy(reinterpret_cast<void*>(copy.to), reinterpret_cast<const void*>(copy.from), copy.bytes);
  }
}

void wait_group(Frame& frame) {
  frame.expect({1});
  Thread& self = *engine().current;
  const uint64_t keep = frame.get(0, 0, "n");
  while (self.groups.size() > keep) {
    land(self.groups.front());
    self.groups.pop_front();
  }
}

void wait_all(Frame&) {
  Thread& self = *engine().current;
  for (const auto& group : self.groups) land(group);
  land(self.copies);
  self.groups.clear();
  self.copies.clear();
}

struct Entry {
  const char* opcode;
  Run run;
};
const Entry entries[] = {
    {"ld.relaxed.gpu.global.b32", load<1, relaxed>},
    {"ld.relaxed.gpu.global.v2.b32", load<2, relaxed>},
    {"ld.relaxed.gpu.global.v4.b32", load<4, relaxed>},
    {"ld.relaxed.gpu.global.b64", load_long},
    {"ld.acquire.gpu.global.b32", load<1, ordered>},
    {"st.relaxed.gpu.global.b32", store<1, relaxed>},
    {"st.relaxed.gpu.global.v2.b32", store<2, relaxed>},
    {"st.relaxed.gpu.global.v4.b32", store<4, relaxed>},
    {"st.relaxed.sys.global.b32", store<1, relaxed>},
    {"st.relaxed.gpu.global.b64", store_long},
    {"st.release.gpu.global.b32", store<1, ordered>},
    {"cp.async.cg.shared.global", copy<16>},
    {"cp.async.ca.shared.global", copy<0>},
    {"cp.async.commit_group", commit},
    {"cp.async.wait_group", wait_group},
    {"cp.async.wait_all", wait_all},
};

}  // namespace

Run find_memory(const std::string& opcode) {
  for (const Entry& entry : entries)
    if (opcode == entry.opcode) return entry.run;
  return nullptr;
}

}  // namespace hostsim
