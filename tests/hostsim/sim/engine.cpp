// Launches and blocks: what waits for room, what runs, what is over.
#include "engine.h"

#include <algorithm>
#include <map>
#include <stdexcept>

namespace hostsim {

std::string at(Site site) {
  const char* name = site.file;
  for (const char* c = site.file; *c; ++c)
    if (*c == '/') name = c + 1;
  return std::string(name) + ":" + std::to_string(site.line);
}

void Engine::seed(uint32_t value) {
  random_.seed(value);
  policy_ = Policy(value % 4);
}

int Engine::submit(std::unique_ptr<Launch> launch) {
  sms_.assign(device.sm_count, Sm());
  if (launch->shape.cooperative && !fits_whole(*launch)) {
    error = launch->name + ": a cooperative grid of " + std::to_string(launch->shape.grid) + " blocks does not fit " +
            std::to_string(device.sm_count) + " multiprocessors";
    return 720;  // cudaErrorCooperativeLaunchTooLarge
  }
  if (!launch->fill_to && (launch->shape.shared_bytes > device.shared_per_block || launch->shape.block > 1024 ||
                           launch->shape.grid == 0 || launch->shape.block == 0)) {
    error = launch->name + ": " + std::to_string(launch->shape.grid) + " blocks of " +
            std::to_string(launch->shape.block) + " threads with " + std::to_string(launch->shape.shared_bytes) +
            " bytes of shared memory; the device gives a block " + std::to_string(device.shared_per_block);
    return 1;  // cudaErrorInvalidValue
  }
  launch->id = uint32_t(past_.size());
  past_.push_back({batch_, launch->stream});
  queue_.push_back(std::move(launch));
  return held_ || run() ? 0 : 719;  // cudaErrorLaunchFailure
}

// Runs everything queued. Launches of one stream follow each other, those of several streams run at once.
bool Engine::run() {
  held_ = failed_ = false;
  error.clear();
  sms_.assign(device.sm_count, Sm());
  starved_ = random_();
  try {
    schedule();
  } catch (const std::exception& reason) {  // of the simulation itself: it has no room
    fail(reason.what());
  }
  drop_everything();
  return !failed_;
}

void Engine::schedule() {
  uint64_t seen = progress, slices = 0;
  while (!failed_) {
    while (start_blocks()) ++progress;
    Thread* next = pick();
    if (!next && blocks_.empty() && queue_.empty()) return;
    if (!next) return fail("deadlock: no thread can run" + who_waits());
    resume(*next);
    if (progress != seen) {
      seen = progress;
      slices = 0;
    } else if (++slices > 2000 * (ready_.size() + polling_.size() + 8)) {
      if (!clock_jumps) return fail("deadlock: threads only wait for memory that nobody writes" + who_waits());
      slices = 0;
      now += uint64_t(1) << 36;  // about a minute
    }
  }
}

void Engine::fail(const std::string& message) {
  failed_ = true;
  error = message;
}

void Engine::drop_everything() {
  for (auto& block : blocks_) retire(*block);
  blocks_.clear();
  queue_.clear();
  ready_.clear();
  polling_.clear();
  stacks.trim();
  ++batch_;
}

bool Engine::stream_ready(const Launch& launch) const {
  for (const auto& other : queue_) {
    if (other.get() == &launch) return true;
    if (other->stream == launch.stream && !other->finished) return false;
  }
  return true;
}

bool Engine::fits_whole(const Launch& launch) const {
  const size_t by_shared = launch.shape.shared_bytes ? device.shared_per_sm / (launch.shape.shared_bytes + 1024) : 64;
  const size_t by_threads = device.threads_per_sm / launch.shape.block;
  const size_t each = std::min({by_shared, by_threads, size_t(device.blocks_per_sm)});
  return each * device.sm_count >= launch.shape.grid;
}

// Its stream is free, and no cooperative grid is in the middle of being placed; such a grid itself waits for an empty
// device, so that all of it fits at once.
bool Engine::may_start(const Launch& launch) const {
  if (!stream_ready(launch)) return false;
  for (const auto& other : queue_)
    if (other.get() != &launch && other->shape.cooperative && other->started && other->next_block < other->shape.grid)
      return false;
  return !launch.shape.cooperative || launch.started || blocks_.empty();
}

int Engine::sm_with_room(const Launch& launch) {
  const uint32_t first = draw(uint32_t(sms_.size()));
  for (uint32_t i = 0; i < sms_.size(); ++i) {
    const Sm& sm = sms_[(first + i) % sms_.size()];
    if (sm.shared + launch.shape.shared_bytes + 1024 <= device.shared_per_sm && sm.blocks < device.blocks_per_sm &&
        sm.threads + int(launch.shape.block) <= device.threads_per_sm)
      return int((first + i) % sms_.size());
  }
  return -1;
}

// Starts one block if one may start. A cooperative grid starts whole, when nothing else of it would have to wait.
bool Engine::start_blocks() {
  for (auto& launch : queue_) {
    if (launch->finished || !may_start(*launch)) continue;
    if (launch->fill_to) {
      do_fill(*launch);
      return true;
    }
    if (launch->next_block == launch->shape.grid) continue;
    const int sm = sm_with_room(*launch);
    if (sm < 0) continue;
    start_block(*launch, sm);
    return true;
  }
  while (!queue_.empty() && queue_.front()->finished) queue_.erase(queue_.begin());
  return false;
}

void Engine::do_fill(Launch& launch) {
  const auto base = reinterpret_cast<uintptr_t>(launch.fill_to);
  Region* region = memory.find(base);
  if (!region || base + launch.fill_bytes > region->base + region->size || !region->writable) {
    fail("fill: " + std::to_string(launch.fill_bytes) + " bytes of no known writable memory");
  } else {
    memset(launch.fill_to, launch.fill_byte, launch.fill_bytes);
    Stamp stamp;
    stamp.launch = launch.id;
    for (size_t i = base - region->base; i < base - region->base + launch.fill_bytes; ++i) {
      region->bytes[i] = Byte::written;
      region->cells[i / 2] = Cell();
      region->cells[i / 2].write = stamp;
    }
  }
  launch.finished = true;
}

namespace {
void thread_main() {
  Engine& e = engine();
  const Launch& launch = *e.current->block->launch;
  launch.entry(launch.kernel, launch.params.get());
  e.thread_ends();
}
}  // namespace

void Engine::start_block(Launch& launch, int sm) {
  launch.started = true;
  sms_[sm].shared += launch.shape.shared_bytes + 1024;
  sms_[sm].threads += int(launch.shape.block);
  ++sms_[sm].blocks;
  ++launch.live_blocks;
  blocks_.push_back(std::make_unique<Block>());
  Block& block = *blocks_.back();
  block.launch = &launch;
  block.index = launch.next_block++;
  block.sm = sm;
  // Dynamic shared memory begins at a multiple of 16 and of nothing larger; what lies there is unspecified.
  block.storage.reset(new char[launch.shape.shared_bytes + 64]);
  const auto base = (reinterpret_cast<uintptr_t>(block.storage.get()) & ~uintptr_t(31)) + 48;
  memset(block.storage.get(), 0xFE, launch.shape.shared_bytes + 64);
  block.shared.name = "shared memory";
  block.shared.shared = true;
  block.shared.reset(base, launch.shape.shared_bytes, true, Byte::unwritten);
  block.live = launch.shape.block;
  block.warps.resize((launch.shape.block + 31) / 32);
  block.threads.resize(launch.shape.block);
  for (uint32_t i = 0; i < launch.shape.block; ++i) {
    Thread& thread = block.threads[i];
    thread.block = &block;
    thread.index = uint16_t(i);
    block.warps[i / 32].live |= 1u << i % 32;
    thread.fiber.stack = stacks.take();
    prepare(thread.fiber, thread_main);
    ready_.push_back(&thread);
  }
}

void Engine::retire(Block& block) {
  Sm& sm = sms_[block.sm];
  sm.shared -= block.launch->shape.shared_bytes + 1024;
  sm.threads -= int(block.launch->shape.block);
  --sm.blocks;
  for (Thread& thread : block.threads)
    if (thread.fiber.stack) stacks.give(thread.fiber.stack);
  Launch& launch = *block.launch;
  if (--launch.live_blocks == 0 && launch.next_block == launch.shape.grid) launch.finished = true;
}

bool Engine::ordered(const Stamp& s) const {
  const Block& block = *current->block;
  const Launch& launch = *block.launch;
  if (s.launch != launch.id) return past_[s.launch].batch < batch_ || past_[s.launch].stream == launch.stream;
  if (s.block == block.index) {
    if (s.thread == current->index || s.barriers < block.barriers) return true;
    return s.thread / 32 == current->index / 32 && s.syncs < block.warps[current->index / 32].syncs;
  }
  const auto found = block.acquired.find({s.launch, s.block});
  return found != block.acquired.end() && s.releases < found->second;
}

Stamp Engine::stamp(bool atomic) const {
  const Block& block = *current->block;
  Stamp s;
  s.launch = block.launch->id;
  s.block = uint16_t(block.index);
  s.thread = current->index;
  s.barriers = block.barriers;
  s.syncs = block.warps[current->index / 32].syncs;
  s.releases = block.releases;
  s.atomic = atomic;
  return s;
}

void Engine::fault(const std::string& message) {
  if (!current) throw std::runtime_error(message);
  fail(message + "; " + current->block->launch->name + ", block " + std::to_string(current->block->index) + " thread " +
       std::to_string(current->index));
  Thread* gone = current;
  current = nullptr;
  hostsim_switch(&gone->fiber.stack_pointer, main_stack_);
  __builtin_unreachable();
}

std::string Engine::who_waits() const {
  std::map<std::string, std::pair<int, int>> places;  // where -> first thread, how many
  for (const auto& block : blocks_)
    for (const Thread& t : block->threads) {
      if (t.state == State::done || t.state == State::ready) continue;
      const std::string where =
          block->launch->name + ", block " + std::to_string(block->index) + ", in " + t.waits_in + " at " + at(t.site);
      auto [slot, fresh] = places.try_emplace(where, int(t.index), 0);
      ++slot->second.second;
    }
  std::string all;
  for (const auto& [where, threads] : places)
    all += "\n  " + where + ": " + std::to_string(threads.second) + " threads, thread " +
           std::to_string(threads.first) + " the first";
  for (const auto& launch : queue_)
    if (!launch->finished && !launch->fill_to && launch->next_block < launch->shape.grid)
      all += "\n  " + launch->name + ": " + std::to_string(launch->shape.grid - launch->next_block) +
             " blocks wait for room";
  return all;
}

}  // namespace hostsim
