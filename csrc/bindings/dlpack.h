// The parts of DLPack that are used here (DLPack 1.x, https://dmlc.github.io/dlpack): capsules that export a tensor,
// and the table of functions that a tensor class offers in its `__dlpack_c_exchange_api__`. The standard fixes layouts.
#pragma once
#include <cstdint>

namespace dlpack {

inline constexpr const char* kCapsule = "dlpack_exchange_api";
inline constexpr const char* kTensorCapsule = "dltensor";
inline constexpr uint32_t kMajor = 1;
inline constexpr int32_t kCpu = 1;
inline constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6;
inline constexpr int32_t kMostDims = 8;  // of a tensor that Python describes; no argument has more than 4

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;    // (ndim,), the tensor's own
  int64_t* strides;  // (ndim,) in elements, the tensor's own
  uint64_t byte_offset;
};

// What a "dltensor" capsule holds
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* previous;
  void* allocate;
  void* export_owning;
  void* import_owning;
  int (*look)(void* py_object, Tensor* out);  // borrows; 0, or -1 with a Python exception set; may be null
  void* current_work_stream;
};

}  // namespace dlpack
