// The simulated device: launches, blocks, warps and threads, and who runs next. Internal to the simulation.
#pragma once
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"
#include "shadow.h"

namespace hostsim {

struct Block;
struct Launch;

// One asynchronous copy; it lands when its thread waits for its group.
struct Copy {
  uintptr_t to, from;
  uint32_t bytes;
};

enum class State : uint8_t { ready, polling, at_barrier, in_warp_op, done };

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint16_t index = 0;
  State state = State::ready;
  const char* waits_in = "";  // "__syncthreads", an instruction …
  Site site{"", 0};
  void* operand = nullptr;  // of the warp operation it waits in
  std::vector<Copy> copies;
  std::deque<std::vector<Copy>> groups;

  int lane() const { return index % 32; }
};

// Lanes of one warp that have arrived at an operation they do together.
struct Warp {
  uint32_t arrived = 0, mask = 0, live = 0;
  uint32_t syncs = 0;
  const char* operation = nullptr;
  Site site{"", 0};
};

struct Block {
  Launch* launch;
  uint32_t index;
  int sm;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unique_ptr<char[]> storage;
  Region shared;
  uint32_t arrived = 0, live = 0, barriers = 0, releases = 0;
  Site barrier_site{"", 0};  // where `arrived` threads wait
  Clock acquired;
};

struct Launch {
  uint32_t id;
  std::string name;
  LaunchShape shape;
  void* stream;
  void (*entry)(const void*, const void*);
  const void* kernel;
  std::unique_ptr<char[]> params;
  Region params_region;
  void* fill_to = nullptr;  // a fill, not a kernel
  int fill_byte = 0;
  size_t fill_bytes = 0;
  uint32_t next_block = 0, live_blocks = 0;
  bool started = false, finished = false;
};

struct Device {
  int sm_count = 4;
  size_t shared_per_block = 227 << 10, shared_per_sm = 228 << 10;
  int threads_per_sm = 2048, blocks_per_sm = 32;
};

// How the next thread is chosen. Every policy draws from the seed.
enum class Policy { random, depth_first, breadth_first, starve_one };

class Engine {
 public:
  Device device;
  GlobalMemory memory;
  StackPool stacks;
  Thread* current = nullptr;
  uint64_t progress = 0;     // grows when a thread writes memory, passes a barrier or ends
  bool clock_jumps = false;  // a run in which all threads only wait gets later instead of ending as a deadlock
  uint64_t now = 0;          // nanoseconds, as far as %globaltimer is concerned
  std::string error;

  void seed(uint32_t value);
  void hold() { held_ = true; }
  bool run();
  int submit(std::unique_ptr<Launch> launch);
  void yield(State state, const char* waits_in, Site site);
  void make_ready(Thread& thread);
  [[noreturn]] void fault(const std::string& message);
  uint32_t draw(uint32_t below) { return std::uniform_int_distribution<uint32_t>(0, below - 1)(random_); }
  Stamp stamp(bool atomic) const;
  bool ordered(const Stamp& before) const;  // before the running thread's next access
  void thread_ends();

 private:
  struct Sm {
    size_t shared = 0;
    int threads = 0, blocks = 0;
  };
  struct Past {
    uint32_t batch;
    void* stream;
  };
  void schedule();
  void fail(const std::string& message);
  bool start_blocks();
  void start_block(Launch& launch, int sm);
  bool may_start(const Launch& launch) const;
  bool stream_ready(const Launch& launch) const;
  bool fits_whole(const Launch& launch) const;
  int sm_with_room(const Launch& launch);
  void do_fill(Launch& launch);
  Thread* pick();
  void resume(Thread& thread);
  void retire(Block& block);
  void drop_everything();
  std::string who_waits() const;

  std::mt19937 random_{1};
  Policy policy_ = Policy::random;
  std::deque<Thread*> ready_, polling_;
  uint32_t starved_ = 0;
  std::vector<std::unique_ptr<Launch>> queue_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Sm> sms_;
  std::vector<Past> past_{Past{0, nullptr}};
  uint32_t batch_ = 1;
  void* main_stack_ = nullptr;
  bool held_ = false, failed_ = false;
};

inline Engine& engine() {  // inline, for it is asked at every access
  static Engine instance;
  return instance;
}
std::string at(Site site);

// Waits until all lanes of `mask` have come to the same operation; the last to arrive runs execute(operands by lane).
void warp_operation(uint32_t mask, const char* name, Site site, void* operand, void (*execute)(void** operands));

// Memory clocks for acquire and release (shadow.cpp).
void note_release(uintptr_t address);
void note_acquire(uintptr_t address);

}  // namespace hostsim
