// Shadow memory: what is known of every byte a kernel may touch, and who touched it last.
//
// A `Region` is one allocation (a tensor, the shared memory of a block, a kernel's parameters). Per byte it knows
// whether a value was ever written and whether an asynchronous copy is still on its way; per two bytes the last writer
// and the last readers. Two accesses race when one writes, not both are atomic, and nothing orders them: the same
// thread; a barrier of the block or of the warp between them; a release that the later block acquired (one clock per
// block); or the end of a launch.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace hostsim {

// Who made an access, and how far its block and warp had come.
struct Stamp {
  uint32_t launch = 0;  // 0: nobody
  uint16_t block = 0, thread = 0;
  uint32_t barriers = 0;  // barriers of the block before it
  uint32_t syncs = 0;     // barriers of the block or the warp before it
  uint32_t releases = 0;  // releases of the block before it
  bool atomic = false;
  bool same_thread(const Stamp& o) const { return launch == o.launch && block == o.block && thread == o.thread; }
  bool same_warp(const Stamp& o) const {
    return launch == o.launch && block == o.block && thread / 32 == o.thread / 32;
  }
};

// releases of (launch, block) that a block has acquired
using Clock = std::map<std::pair<uint32_t, uint16_t>, uint32_t>;

enum class Byte : uint8_t { unwritten, written, arriving };

struct Cell {
  Stamp write;
  Stamp reads[3];  // the last; the last of another thread; the last of another warp
};

struct Region {
  uintptr_t base = 0;
  size_t size = 0;
  std::string name;
  bool writable = false;
  bool shared = false;  // shared memory of a block
  std::vector<Byte> bytes;
  std::vector<Cell> cells;  // one per two bytes; empty for read-only memory

  bool holds(uintptr_t address) const { return address - base < size; }
  void reset(uintptr_t where, size_t length, bool is_writable, Byte state);
};

enum class Kind : uint8_t { read, write };

struct Access {
  uintptr_t address;
  uint32_t size;
  Kind kind;
  bool atomic;
  const void* pc;
};

// All registered global memory, by address.
class GlobalMemory {
 public:
  Region& add(uintptr_t base, size_t size, const std::string& name, bool writable, bool written);
  Region* find(uintptr_t address);
  Region* nearest(uintptr_t address);  // for messages: the region that ends or begins closest
  void clear();

 private:
  std::map<uintptr_t, std::unique_ptr<Region>> regions_;
  Region* last_ = nullptr;
};

// Checks one access of the running thread and records it; a fault ends the run.
void check(Region& region, const Access& access);
// The same for an address that may lie anywhere.
void check_anywhere(const Access& access);

}  // namespace hostsim
