// Threads: who runs next, and how they meet at barriers and in the operations of a warp.
#include <algorithm>
#include <stdexcept>

#include "engine.h"

namespace hostsim {
namespace {

template <class Queue>
Thread* take(Queue& queue, size_t index) {
  Thread* thread = queue[index];
  queue[index] = queue.back();
  queue.pop_back();
  return thread;
}

}  // namespace

// Pollers run when nobody else can, and now and then in between: they must not keep the others from running.
Thread* Engine::pick() {
  if (ready_.empty() || (!polling_.empty() && draw(16) == 0)) {
    if (polling_.empty()) return nullptr;
    return take(polling_, draw(uint32_t(polling_.size())));
  }
  const uint32_t many = uint32_t(ready_.size());
  switch (policy_) {
    case Policy::depth_first: {
      Thread* thread = ready_.back();
      ready_.pop_back();
      return thread;
    }
    case Policy::breadth_first: {
      Thread* thread = ready_.front();
      ready_.pop_front();
      return thread;
    }
    case Policy::starve_one: {  // one warp runs only when no other can
      const uint32_t warp = starved_ % 16;
      for (uint32_t tries = 0; tries < 4; ++tries) {
        const uint32_t index = draw(many);
        if (ready_[index]->index / 32u != warp) return take(ready_, index);
      }
      return take(ready_, draw(many));
    }
    default:
      return take(ready_, draw(many));
  }
}

void Engine::resume(Thread& thread) {
  ++now;
  thread.state = State::ready;
  current = &thread;
  hostsim_switch(&main_stack_, thread.fiber.stack_pointer);
  current = nullptr;
  Block& block = *thread.block;
  if (failed_ || thread.state != State::done || block.live) return;
  retire(block);
  blocks_.erase(
      std::find_if(blocks_.begin(), blocks_.end(), [&](const auto& candidate) { return candidate.get() == &block; }));
}

void Engine::make_ready(Thread& thread) {
  thread.state = State::ready;
  ready_.push_back(&thread);
}

// Leaves the running thread; it comes back when it is picked again.
void Engine::yield(State state, const char* waits_in, Site site) {
  Thread& thread = *current;
  thread.state = state;
  thread.waits_in = waits_in;
  thread.site = site;
  if (state == State::polling) polling_.push_back(&thread);
  if (state == State::ready) ready_.push_back(&thread);
  hostsim_switch(&thread.fiber.stack_pointer, main_stack_);
}

void Engine::thread_ends() {
  Thread& thread = *current;
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.index / 32];
  thread.state = State::done;
  warp.live &= ~(1u << thread.lane());
  --block.live;
  ++progress;
  if (warp.operation && warp.mask >> thread.lane() & 1)
    fault(std::string("divergent warp: the thread ends while others of its warp wait for it in ") + warp.operation +
          " at " + at(warp.site));
  if (block.arrived)
    for (const Thread& other : block.threads)
      if (other.state == State::at_barrier)
        fault("divergent barrier: the thread ends while thread " + std::to_string(other.index) +
              " waits in __syncthreads at " + at(other.site));
  hostsim_switch(&thread.fiber.stack_pointer, main_stack_);
  __builtin_unreachable();
}

void warp_operation(uint32_t mask, const char* name, Site site, void* operand, void (*execute)(void**)) {
  Engine& e = engine();
  Thread& self = *e.current;
  Block& block = *self.block;
  Warp& warp = block.warps[self.index / 32];
  const uint32_t bit = 1u << self.lane();
  if (!(mask & bit)) e.fault(std::string(name) + " at " + at(site) + ": the mask does not name the lane itself");
  if (mask & ~warp.live)
    e.fault(std::string("divergent warp: ") + name + " at " + at(site) + " waits for lanes that have ended");
  if (warp.operation && (warp.mask != mask || warp.site.line != site.line || strcmp(warp.operation, name) != 0))
    e.fault(std::string("divergent warp: ") + name + " at " + at(site) + " while other lanes wait in " +
            warp.operation + " at " + at(warp.site));
  warp.operation = name;
  warp.mask = mask;
  warp.site = site;
  warp.arrived |= bit;
  self.operand = operand;
  if (warp.arrived != mask) {
    e.yield(State::in_warp_op, name, site);
    return;
  }
  void* operands[32] = {};
  const uint32_t first = self.index & ~31u;
  for (uint32_t lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) operands[lane] = block.threads[first + lane].operand;
  execute(operands);
  warp.operation = nullptr;
  warp.arrived = 0;
  for (uint32_t lane = 0; lane < 32; ++lane)
    if (mask & ~bit & 1u << lane) e.make_ready(block.threads[first + lane]);
  e.yield(State::ready, name, site);
}

void barrier(const char* file, int line) {
  Engine& e = engine();
  Thread& self = *e.current;
  Block& block = *self.block;
  const Site site{file, line};
  if (block.live != block.threads.size())
    e.fault("divergent barrier: __syncthreads at " + at(site) + " after other threads of the block have ended");
  if (block.arrived && (block.barrier_site.line != line || strcmp(block.barrier_site.file, file) != 0))
    e.fault("divergent barrier: __syncthreads at " + at(site) + " while other threads of the block wait at " +
            at(block.barrier_site));
  block.barrier_site = site;
  if (++block.arrived < block.live) {
    e.yield(State::at_barrier, "__syncthreads", site);
    return;
  }
  block.arrived = 0;
  ++block.barriers;
  ++e.progress;
  for (Warp& warp : block.warps) ++warp.syncs;
  for (Thread& other : block.threads)
    if (&other != &self) e.make_ready(other);
  e.yield(State::ready, "__syncthreads", site);
}

}  // namespace hostsim
