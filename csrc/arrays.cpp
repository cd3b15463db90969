// Arrays of a training step, used again by the next step.
//
// The C library gives arrays beyond 32 MB back to the system when they are freed, smaller ones when they happen to lie
// at the end of its heap, and the next step pays for fresh pages, all of them zeroed first: up to a fifth of a step.
// Here a freed array waits for the next request of its size. What nobody asked for during the last kPatience requests
// goes back to the system, and never more than kMostBytes wait. Handed to torch as DLPack capsules; whichever thread
// frees a tensor brings its array back.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "dlpack.h"
#define FASTLSTM_ISA arrays
#include "cpu/pages.h"

namespace py = pybind11;

namespace {

constexpr size_t kMostBytes = size_t(1) << 30;
constexpr int64_t kPatience = 256;

// Bytes that are taken for so many: an eighth of a power of two more at most, so that batches of nearly the same size
// share arrays, and whole large pages from there on.
size_t size_class(size_t bytes) {
  size_t unit = 4096;
  while (bytes > 8 * unit && unit < arrays::kLargePage) unit *= 2;
  while (bytes > 32 * unit) unit *= 2;
  return (bytes + unit - 1) / unit * unit;
}

class Shelf {
 public:
  // Never waits: in a child process the lock may be held for ever by a thread that the fork did not copy.
  void* take(size_t bytes) {
    if (const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock.owns_lock()) {
      ++requests_;
      for (auto at = waiting_.begin(); at != waiting_.end(); ++at)
        if (at->bytes == bytes) {
          void* found = at->data;
          total_ -= bytes;
          waiting_.erase(at);
          return found;
        }
      drop_old();
    }
    void* fresh = nullptr;
    if (posix_memalign(&fresh, bytes < arrays::kLargePage ? 4096 : arrays::kLargePage, bytes) != 0)
      throw std::bad_alloc();
    arrays::want_large_pages(fresh, bytes);
    return fresh;
  }
  void give(void* data, size_t bytes) noexcept {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || bytes > kMostBytes) return std::free(data);
    waiting_.push_front({data, bytes, requests_});
    total_ += bytes;
    drop_old();
  }
  size_t waiting() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    return lock.owns_lock() ? total_ : 0;
  }

 private:
  struct Array {
    void* data;
    size_t bytes;
    int64_t since;
  };
  void drop_old() {
    while (!waiting_.empty() && (total_ > kMostBytes || requests_ - waiting_.back().since > kPatience)) {
      total_ -= waiting_.back().bytes;
      std::free(waiting_.back().data);
      waiting_.pop_back();
    }
  }
  std::mutex mutex_;
  std::list<Array> waiting_;  // the latest first
  size_t total_ = 0;
  int64_t requests_ = 0;
};

Shelf& shelf() {
  static Shelf* all = new Shelf;  // tensors may be freed after static objects are gone
  return *all;
}

struct Owner {
  dlpack::Managed managed;
  std::vector<int64_t> shape;
  size_t bytes;
};

void release(dlpack::Managed* managed) {
  Owner* owner = static_cast<Owner*>(managed->context);
  shelf().give(managed->tensor.data, owner->bytes);
  delete owner;
}

// A capsule that torch has taken over is renamed by it, and its deleter is called by torch.
void unused(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, dlpack::kTensorCapsule)) return;
  auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule, dlpack::kTensorCapsule));
  managed->deleter(managed);
}

py::object array(std::vector<int64_t> shape, bool is_double) {
  auto owner = std::make_unique<Owner>();
  owner->shape = std::move(shape);
  size_t count = 1;
  for (int64_t n : owner->shape) count *= size_t(n);
  owner->bytes = size_class(count * (is_double ? 8 : 4));
  void* data = shelf().take(owner->bytes);
  owner->managed = {{data, dlpack::kCpu, 0, int32_t(owner->shape.size()), dlpack::kFloat, uint8_t(is_double ? 64 : 32),
                     1, owner->shape.data(), nullptr, 0},
                    owner.get(),
                    &release};
  PyObject* capsule = PyCapsule_New(&owner->managed, dlpack::kTensorCapsule, &unused);
  if (!capsule) {
    shelf().give(data, owner->bytes);
    throw py::error_already_set();
  }
  owner.release();
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void bind_arrays(py::module_& m) {
  m.def("array", &array, "A float array that is not initialised, as a DLPack capsule: shape, whether of doubles.");
  m.def("waiting_bytes", [] { return shelf().waiting(); }, "Bytes of freed arrays that wait to be used again.");
}
