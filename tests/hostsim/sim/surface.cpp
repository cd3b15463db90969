// The functions of device.h that are not scheduling.
#include <cstring>

#include "engine.h"

namespace hostsim {
namespace {

struct Exchange {
  uint32_t value, result;
  int source;
};

void exchange(void** lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!lanes[lane]) continue;
    auto& mine = *static_cast<Exchange*>(lanes[lane]);
    const auto* source = static_cast<const Exchange*>(lanes[mine.source & 31]);
    if (!source) engine().fault("shuffle: reads a lane that the mask does not name");
    mine.result = source->value;
  }
}

void vote(void** lanes) {
  uint32_t all = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (lanes[lane]) all |= static_cast<Exchange*>(lanes[lane])->value << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (lanes[lane]) static_cast<Exchange*>(lanes[lane])->result = all;
}

void order_warp(void**) {
  const Thread& self = *engine().current;
  ++self.block->warps[self.index / 32].syncs;
}

const Block& block() { return *engine().current->block; }

}  // namespace

uint3 thread_idx() { return {engine().current->index, 0, 0}; }
uint3 block_idx() { return {block().index, 0, 0}; }
uint3 block_dim() { return {block().launch->shape.block, 1, 1}; }
uint3 grid_dim() { return {block().launch->shape.grid, 1, 1}; }

void* dynamic_shared() { return reinterpret_cast<void*>(block().shared.base); }

uint32_t shared_address(const void* where) {
  const Region& shared = block().shared;
  const auto address = reinterpret_cast<uintptr_t>(where);
  if (!shared.holds(address)) engine().fault("shared address of memory that is not this block's shared memory");
  return uint32_t(address - shared.base);
}

void check_aligned(const void* where, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(where) % bytes)
    engine().fault("misaligned: a vector access of " + std::to_string(bytes) + " bytes");
}

// A partial mask would order the lanes it names only; the clocks here know whole warps, so it is refused.
void warp_sync(uint32_t mask, const char* file, int line) {
  const Thread& self = *engine().current;
  const Warp& warp = self.block->warps[self.index / 32];
  const bool whole = (mask & warp.live) == warp.live;
  if (!whole) engine().fault("__syncwarp with a partial mask at " + at({file, line}));
  warp_operation(mask, "__syncwarp", {file, line}, nullptr, order_warp);
}

uint32_t shuffle(uint32_t mask, uint32_t value, int source_lane, const char* file, int line) {
  Exchange mine{value, 0, source_lane};
  warp_operation(mask, "__shfl_sync", {file, line}, &mine, exchange);
  return mine.result;
}

uint32_t ballot(uint32_t mask, bool value, const char* file, int line) {
  Exchange mine{value, 0, 0};
  warp_operation(mask, "__ballot_sync", {file, line}, &mine, vote);
  return mine.result;
}

int submit(const char* name, const LaunchShape& shape, void* stream, void (*entry)(const void*, const void*),
           const void* kernel, const void* args, size_t args_bytes) {
  auto launch = std::make_unique<Launch>();
  launch->name = name;
  launch->shape = shape;
  launch->stream = stream;
  launch->entry = entry;
  launch->kernel = kernel;
  launch->params.reset(new char[args_bytes]);
  memcpy(launch->params.get(), args, args_bytes);
  launch->params_region.name = "kernel parameters";
  launch->params_region.reset(reinterpret_cast<uintptr_t>(launch->params.get()), args_bytes, false, Byte::written);
  return engine().submit(std::move(launch));
}

int submit_fill(void* memory, int byte, size_t bytes, void* stream) {
  auto launch = std::make_unique<Launch>();
  launch->name = "fill";
  launch->shape = {1, 1, 0, false};
  launch->stream = stream;
  launch->fill_to = memory;
  launch->fill_byte = byte;
  launch->fill_bytes = bytes;
  return engine().submit(std::move(launch));
}

const char* last_error() { return engine().error.c_str(); }

}  // namespace hostsim
