// Tensors of a training step, whose memory the next step uses again.
//
// malloc returns arrays beyond 32 MB to the system when they are freed, and smaller ones if they are at the end of its
// heap; the next step then pays for fresh, zeroed pages: up to a fifth of a step. Here a freed array stays in a cache
// until a request of its size class. Arrays that kMaxIdleRequests requests passed by are freed, the cache never exceeds
// its limit, and fastlstm.empty_cache frees all of it. Arrays go to torch as DLPack capsules; any thread may free a
// tensor.
//
// The free list is the one of the kernels' workspace (cpu/block_cache.h). The two caches stay apart: the workspace
// needs no lock, and its threads allocate at the same time.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "bindings.h"
#include "boundary.h"
#define FASTLSTM_ISA array_cache
#include "../cpu/block_cache.h"

namespace py = pybind11;

namespace {

constexpr size_t kMaxBytes = size_t(256) << 20;  // unless FASTLSTM_CACHE_MB says otherwise
constexpr int64_t kMaxIdleRequests = 256;

// `bytes` rounded up by at most an eighth, so that batches of nearly the same size share arrays; whole huge pages from
// there on.
size_t size_class(size_t bytes) {
  size_t unit = 4096;
  while (bytes > 8 * unit && unit < array_cache::kHugePage) unit *= 2;
  while (bytes > 32 * unit) unit *= 2;
  return (bytes + unit - 1) / unit * unit;
}

// Never blocks: in a forked child the mutex may stay locked by a thread that does not exist there.
class CachingAllocator {
 public:
  void* allocate(size_t bytes) {
    if (const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock.owns_lock())
      if (void* data = cache_.reuse(bytes)) return data;
    return array_cache::BlockCache::new_block(bytes, 4096, array_cache::kHugePage);
  }
  void free(void* data, size_t bytes) noexcept {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    lock.owns_lock() ? cache_.release(data, bytes) : std::free(data);
  }
  size_t cached_bytes() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    return lock.owns_lock() ? cache_.cached_bytes() : 0;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    cache_.clear();
  }
  void limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    cache_.limit(bytes);
  }

 private:
  std::mutex mutex_;
  array_cache::BlockCache cache_{{kMaxBytes, std::numeric_limits<size_t>::max(), kMaxIdleRequests}};
};

CachingAllocator& allocator() {
  static auto* instance = new CachingAllocator;  // tensors may be freed after static objects are destroyed
  return *instance;
}

struct Owner {
  dlpack::Managed managed;
  std::vector<int64_t> shape;
  size_t bytes;
};

void release(dlpack::Managed* managed) {
  Owner* owner = static_cast<Owner*>(managed->context);
  allocator().free(managed->tensor.data, owner->bytes);
  delete owner;
}

// Destructor of a capsule. Torch renames a capsule that it takes over, and calls the deleter itself.
void release_unused(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, dlpack::kTensorCapsule)) return;
  auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule, dlpack::kTensorCapsule));
  managed->deleter(managed);
}

py::object array(std::vector<int64_t> shape, bool is_double, bool is_bfloat16) {
  auto owner = std::make_unique<Owner>();
  owner->shape = std::move(shape);
  int64_t count = 1;
  for (int64_t n : owner->shape) count = boundary::product({count, n});
  if (count < 0) throw py::value_error("array: the sizes multiply to more than memory can hold, or one is negative");
  const boundary::Type type = is_bfloat16 ? boundary::kBfloat16 : is_double ? boundary::kFloat64 : boundary::kFloat32;
  owner->bytes = size_class(size_t(count) * (type.bits / 8));
  void* data = allocator().allocate(owner->bytes);
  owner->managed = {
      {data, dlpack::kCpu, 0, int32_t(owner->shape.size()), type.code, type.bits, 1, owner->shape.data(), nullptr, 0},
      owner.get(),
      &release};
  PyObject* capsule = PyCapsule_New(&owner->managed, dlpack::kTensorCapsule, &release_unused);
  if (!capsule) {
    allocator().free(data, owner->bytes);
    throw py::error_already_set();
  }
  owner.release();
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void bind_array_cache(py::module_& m) {
  m.def("array", &array, py::arg("shape"), py::arg("double"), py::arg("bfloat16") = false,
        "An array that is not initialised, as a DLPack capsule.");
  m.def("cached_bytes", [] { return allocator().cached_bytes(); }, "Bytes of freed arrays in the cache.");
  m.def(
      "empty_cache",
      [](int64_t threads) {
        allocator().clear();
        const int usable = usable_threads(threads < 1 ? 1 : threads);
        empty_workspaces(usable);
      },
      py::arg("threads"), "Frees the arrays in the cache and the scratch memory of so many threads.");
  m.def(
      "limit_cache", [](size_t bytes) { allocator().limit(bytes); }, py::arg("bytes"),
      "From now on at most so many bytes of freed arrays are kept.");
}
