// The one place where a tensor becomes an address.
//
// A tensor has memory that a kernel may use if it is of torch's own classes (or of a subclass without operations of
// its own), lies on the CPU, is not a lazily negated view, and its storage is as long as its sizes and strides say.
// Each caller adds the type and the sizes that it expects. Tensors are read through the DLPack C exchange API (torch
// 2.10 and later), their storage through torch's stable C interface, and their dispatch keys where set_up found them in
// torch's object; without these, through Python functions (native_boundary in fastlstm/_torch_compat.py), which take
// several times as long.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "dlpack.h"

namespace py = pybind11;

namespace boundary {

// Element types, as DLPack writes them
struct Type {
  uint8_t code, bits;
  const char* name;
  bool operator==(const Type& other) const { return code == other.code && bits == other.bits; }
};
inline constexpr Type kFloat32{dlpack::kFloat, 32, "float32"}, kFloat64{dlpack::kFloat, 64, "float64"},
    kBfloat16{dlpack::kBfloat, 16, "bfloat16"}, kInt64{dlpack::kInt, 64, "int64"}, kInt32{dlpack::kInt, 32, "int32"},
    kInt8{dlpack::kInt, 8, "int8"}, kUint8{dlpack::kUInt, 8, "uint8"}, kBool{dlpack::kBool, 8, "bool"};

// That of a C++ type
template <class T, class... Types>
constexpr bool is_one_of = (std::is_same_v<T, Types> || ...);
template <class T>
constexpr Type find_type() {
  static_assert(is_one_of<T, float, double, uint16_t, int64_t, int32_t, int8_t, uint8_t, bool>);
  if constexpr (std::is_same_v<T, float>) return kFloat32;
  if constexpr (std::is_same_v<T, double>) return kFloat64;
  if constexpr (std::is_same_v<T, uint16_t>) return kBfloat16;  // its bits
  if constexpr (std::is_same_v<T, int64_t>) return kInt64;
  if constexpr (std::is_same_v<T, int32_t>) return kInt32;
  if constexpr (std::is_same_v<T, int8_t>) return kInt8;
  if constexpr (std::is_same_v<T, uint8_t>) return kUint8;
  return kBool;
}
template <class T>
inline constexpr Type type_of = find_type<std::remove_const_t<T>>();

// a * b * ... of sizes that are 0 or more; -1 if one is negative or the product exceeds 2^60 (so that bytes fit, too).
int64_t product(std::initializer_list<int64_t> sizes);

// A tensor's memory; `object` is borrowed. Not copied: `tensor` may point into it.
struct View {
  View() = default;
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  PyObject* object = nullptr;
  dlpack::Tensor tensor{};
  int64_t own[2 * dlpack::kMostDims];  // shape and strides, where Python told them
  int64_t bytes_left = -1;             // of the storage, from the first element on; -1: torch's functions tell
  bool plain = false;                  // an ordinary tensor by its dispatch keys, so not a negated view
  bool negated = false;                // a negated view by its dispatch keys

  template <class T>
  T* data() const {
    return static_cast<T*>(tensor.data);
  }
  bool is(Type type) const { return tensor.code == type.code && tensor.bits == type.bits && tensor.lanes == 1; }
  bool has(std::initializer_list<int64_t> sizes) const;
  int64_t count() const;  // elements
  int64_t last() const { return tensor.ndim ? tensor.shape[tensor.ndim - 1] : 1; }
  bool contiguous() const;
};

// True if the object is a tensor that describes itself; calls nothing of torch that can be observed.
bool find_memory(PyObject* object, View& view);
bool is_own_class(PyObject* object);  // a tensor or parameter of exactly torch's class
// True if the memory of a CPU tensor of torch's is shorter than its sizes and strides say.
bool is_cut_off(const View& view);
// True if its memory may be used as it stands: CPU, elements there, not negated, storage long enough.
bool is_usable(const View& view);
// `find_memory` of a tensor that `is_usable`
inline bool look(PyObject* object, View& view) { return find_memory(object, view) && is_usable(view); }

// Whether tensors are read without a call of Python
bool reads_natively();
// What an object is, for error messages: "float16 with shape [3, 4] on cpu"
std::string describe(PyObject* object);

}  // namespace boundary
