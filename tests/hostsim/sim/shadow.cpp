#include "shadow.h"

#include <cstdio>

#include "engine.h"

namespace hostsim {
namespace {

std::map<uintptr_t, Clock> released;  // by address: what the last release store there published

std::string text(const char* format, auto... values) {
  char line[512];
  snprintf(line, sizeof line, format, values...);
  return line;
}

const char* verb(const Access& a) {
  if (a.atomic) return a.kind == Kind::read ? "reads (relaxed)" : "writes (relaxed)";
  return a.kind == Kind::read ? "reads" : "writes";
}

// Where in the source: inline PTX knows its line, for other accesses the address lets addr2line find it.
std::string place(const Access& a) { return a.pc ? text(" [pc %p]", a.pc) : " at " + at(engine().current->site); }

std::string who(const Stamp& s) {
  return text("block %d thread %d%s", int(s.block), int(s.thread),
              s.launch == engine().current->block->launch->id ? "" : " of another launch");
}

[[noreturn]] void out_of_bounds(const Access& a) {
  Region* near = engine().memory.nearest(a.address);
  Region& shared = engine().current->block->shared;
  if (a.address - shared.base + 65536 < shared.size + 131072) near = &shared;
  std::string where = near ? text("; nearest is '%s' of %zu bytes, at offset %lld", near->name.c_str(), near->size,
                                  (long long)(a.address - near->base))
                           : std::string();
  engine().fault(text("out of bounds: %s %u bytes of no known memory", verb(a), a.size) + where + place(a));
}

void check_bytes(Region& r, size_t offset, const Access& a) {
  for (size_t i = offset; i < offset + a.size; ++i) {
    if (r.bytes[i] == Byte::arriving)
      engine().fault(text("unfinished copy: %s '%s' at byte %zu, which an asynchronous copy still fills", verb(a),
                          r.name.c_str(), i) +
                     place(a));
    if (a.kind == Kind::write)
      r.bytes[i] = Byte::written;
    else if (r.bytes[i] == Byte::unwritten)
      engine().fault(text("uninitialised: reads '%s' at byte %zu, which nobody wrote", r.name.c_str(), i) + place(a));
  }
}

[[noreturn]] void race(const Region& r, size_t offset, const Access& a, const Stamp& before, const char* did) {
  engine().fault(text("race: %s '%s' at byte %zu, which ", verb(a), r.name.c_str(), offset) + who(before) + " " + did +
                 " with nothing in between" + place(a));
}

void remember_read(Cell& cell, const Stamp& now) {
  Stamp& last = cell.reads[0];
  if (last.launch && !last.same_thread(now)) {
    cell.reads[1] = last;
    if (!last.same_warp(now)) cell.reads[2] = last;
  }
  last = now;
}

void check_order(Region& r, size_t offset, const Access& a, const Stamp& now) {
  for (size_t i = offset / 2; i <= (offset + a.size - 1) / 2; ++i) {
    Cell& cell = r.cells[i];
    const Stamp& w = cell.write;
    if (w.launch && !(w.atomic && a.atomic) && !engine().ordered(w)) race(r, 2 * i, a, w, "wrote");
    if (a.kind == Kind::read) {
      remember_read(cell, now);
      continue;
    }
    for (const Stamp& read : cell.reads)
      if (read.launch && !(read.atomic && a.atomic) && !engine().ordered(read)) race(r, 2 * i, a, read, "read");
    cell.write = now;
  }
}

}  // namespace

void Region::reset(uintptr_t where, size_t length, bool is_writable, Byte state) {
  base = where;
  size = length;
  writable = is_writable;
  bytes.assign(size, state);
  cells.assign(is_writable ? (size + 1) / 2 : 0, Cell());
}

Region& GlobalMemory::add(uintptr_t base, size_t size, const std::string& name, bool writable, bool written) {
  auto& slot = regions_[base];
  if (slot && slot->size >= size) {  // the same tensor under a second name
    if (writable && !slot->writable) slot->reset(base, slot->size, true, Byte::written);
    return *slot;
  }
  slot = std::make_unique<Region>();
  slot->name = name;
  slot->reset(base, size, writable, written ? Byte::written : Byte::unwritten);
  last_ = nullptr;
  return *slot;
}

Region* GlobalMemory::find(uintptr_t address) {
  if (last_ && last_->holds(address)) return last_;
  auto after = regions_.upper_bound(address);
  if (after == regions_.begin()) return nullptr;
  Region* region = std::prev(after)->second.get();
  return region->holds(address) ? last_ = region : nullptr;
}

Region* GlobalMemory::nearest(uintptr_t address) {
  auto after = regions_.upper_bound(address);
  if (after == regions_.begin()) return after == regions_.end() ? nullptr : after->second.get();
  Region* below = std::prev(after)->second.get();
  if (after != regions_.end() && after->first - address < address - (below->base + below->size))
    return after->second.get();
  return below;
}

void GlobalMemory::clear() {
  regions_.clear();
  last_ = nullptr;
  released.clear();
}

void check(Region& r, const Access& a) {
  const size_t offset = a.address - r.base;
  if (offset + a.size > r.size)
    engine().fault(text("out of bounds: %s %u bytes of '%s' at offset %zu of %zu", verb(a), a.size, r.name.c_str(),
                        offset, r.size) +
                   place(a));
  if (a.kind == Kind::write && !r.writable)
    engine().fault(text("read-only: writes '%s' at offset %zu", r.name.c_str(), offset) + place(a));
  check_bytes(r, offset, a);
  if (!r.cells.empty()) check_order(r, offset, a, engine().stamp(a.atomic));
  if (a.kind == Kind::write) ++engine().progress;
}

void check_anywhere(const Access& a) {
  Engine& e = engine();
  if (e.stacks.holds(a.address)) return;
  Block& block = *e.current->block;
  if (block.shared.holds(a.address)) return check(block.shared, a);
  if (block.launch->params_region.holds(a.address)) return check(block.launch->params_region, a);
  if (Region* region = e.memory.find(a.address)) return check(*region, a);
  out_of_bounds(a);
}

void note_release(uintptr_t address) {
  Block& block = *engine().current->block;
  Clock clock = block.acquired;
  clock[{block.launch->id, uint16_t(block.index)}] = ++block.releases;
  released[address] = clock;
}

void note_acquire(uintptr_t address) {
  const auto found = released.find(address);
  if (found == released.end()) return;
  Clock& mine = engine().current->block->acquired;
  for (const auto& [block, count] : found->second) mine[block] = std::max(mine[block], count);
}

}  // namespace hostsim
