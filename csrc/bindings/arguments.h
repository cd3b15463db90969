// Keyword arguments of the kernels' entry points (entry_point.h).
//
// An entry point takes tensors, sizes and flags by name only: lib.lstm_forward(h=..., c=..., T=...). A name that is
// missing, unknown or of the wrong type raises TypeError; a tensor that is not what the sizes imply raises RuntimeError
// (boundary.h: type, device, sizes, strides, storage); a size that arithmetic cannot hold raises ValueError; an id or a
// batch size that points outside raises IndexError. Nothing has run then. Only what is read with a default may be left
// out; None is as if it were. The caller holds a reference to every argument during the call. Numbers by which a kernel
// finds its way in memory (ids, batch sizes) are copied, and the copy is checked: another thread may change a tensor.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "boundary.h"

namespace py = pybind11;

// A list of objects of a class that pybind11 knows; the list's items must be held while it is used.
template <class T>
using Objects = std::vector<const T*>;

class Arguments {
 public:
  // The arguments of a METH_FASTCALL | METH_KEYWORDS function; `function` is its name, a str.
  Arguments(PyObject* function, PyObject* const* values, Py_ssize_t positional, PyObject* names)
      : function_(function), values_(values), names_(names), count_(names ? PyTuple_GET_SIZE(names) : 0) {
    if (positional > 0) fail("takes keyword arguments only");
    if (count_ > 64) fail("takes at most 64 arguments");
  }

  // Whether the argument is given and not None
  bool given(std::string_view name) const {
    const auto i = find(name);
    return i && values_[*i] != Py_None;
  }

  // The memory of a contiguous tensor of `rows` rows (in one dimension or several) of `width` numbers of type T; it
  // must be given. Never null: an array without elements has an address that is not used.
  template <class T>
  T* array(std::string_view name, int64_t rows, int64_t width) {
    return static_cast<T*>(checked(name, boundary::type_of<T>, rows, width));
  }
  template <class T>
  T* array(std::string_view name, int64_t count) {
    return static_cast<T*>(checked(name, boundary::type_of<T>, count, kAnyWidth));
  }
  void* array(std::string_view name, boundary::Type type, int64_t count) {
    return checked(name, type, count, kAnyWidth);
  }
  // The same; null if it is None or left out.
  template <class T, class... Sizes>
  T* optional_array(std::string_view name, Sizes... sizes) {
    return given(name) ? array<T>(name, sizes...) : absent<T>(name);
  }
  // Null, whatever is given: an array that this call does not read
  template <class T>
  T* absent(std::string_view name) {
    read(name);
    return nullptr;
  }
  // Part number `part` of a contiguous tensor of several parts, each of rows x width
  template <class T>
  T* part(std::string_view name, int64_t part, int64_t rows, int64_t width) {
    boundary::View view;
    look(name, boundary::type_of<T>, view);
    const int64_t size = boundary::product({rows, width}), parts = size > 0 ? view.count() / size : part + 1;
    if (size < 0 || !view.contiguous() || view.last() != width || (size > 0 && view.count() % size) || part < 0 ||
        part >= parts)
      fail_array(name, boundary::type_of<T>, parts_text(part, rows, width));
    return size == 0 ? static_cast<T*>(nothing()) : view.data<T>() + part * size;
  }
  template <class T>
  T* optional_part(std::string_view name, int64_t number, int64_t rows, int64_t width) {
    return given(name) ? part<T>(name, number, rows, width) : absent<T>(name);
  }
  // The number of elements of a tensor of type T, and of its rows, each of `width` numbers
  template <class T>
  int64_t count_of(std::string_view name) {
    boundary::View view;
    look(name, boundary::type_of<T>, view);
    return view.count();
  }
  template <class T>
  int64_t rows_of(std::string_view name, int64_t width) {
    return count_of<T>(name) / (width < 1 ? 1 : width);
  }
  // The tensor of a matrix with any strides
  template <class T>
  void matrix(std::string_view name, boundary::View& view) {
    look(name, boundary::type_of<T>, view);
    if (view.tensor.ndim != 2) fail_array(name, boundary::type_of<T>, "a matrix");
  }

  // A checked copy of `count` ids in 0 … V - 1
  const int64_t* ids(std::string_view name, int64_t count, int64_t V) {
    const int64_t* copy = copied<int64_t>(name, count);
    bool outside = false;
    for (int64_t k = 0; k < count; ++k) outside |= uint64_t(copy[k]) >= uint64_t(V);
    for (int64_t k = 0; outside && k < count; ++k)
      if (uint64_t(copy[k]) >= uint64_t(V))
        throw py::index_error(std::string(name) + " hold " + std::to_string(copy[k]) + ", expected 0 to " +
                              std::to_string(V - 1) + " (the table has " + std::to_string(V) +
                              " rows); check the vocabulary");
    return copy;
  }
  // A copy of an array that no other thread can change
  template <class T>
  T* copied(std::string_view name, int64_t count) {
    const T* values = array<const T>(name, count);
    copies_.emplace_back(new uint64_t[(size_t(count) * sizeof(T) + 7) / 8]);
    T* copy = reinterpret_cast<T*>(copies_.back().get());
    std::copy(values, values + count, copy);
    return copy;
  }

  int64_t integer(std::string_view name) { return to_integer(name, required(name)); }
  int64_t integer(std::string_view name, int64_t if_missing) {
    const auto i = read(name);
    return i ? to_integer(name, values_[*i]) : if_missing;
  }
  // A size: an int from `least` on
  int64_t size(std::string_view name, int64_t least = 0) {
    const int64_t n = integer(name);
    if (n < least) bad_size(name, n, "an int of " + std::to_string(least) + " or more");
    if (n > kMostNumbers) too_large();
    return n;
  }
  // An int in 0 … below - 1
  int64_t index(std::string_view name, int64_t below) { return index_of(name, integer(name), below); }
  int64_t index(std::string_view name, int64_t below, int64_t if_missing) {
    return index_of(name, integer(name, if_missing), below);
  }
  // a * b * … of sizes, for an array or for scratch memory
  int64_t product(std::initializer_list<int64_t> sizes) const {
    const int64_t n = boundary::product(sizes);
    if (n < 0) too_large();
    return n;
  }
  uint64_t unsigned_integer(std::string_view name) { return to_unsigned(name, required(name)); }

  double real(std::string_view name) {
    const double value = PyFloat_AsDouble(required(name));
    if (value == -1.0 && PyErr_Occurred()) fail_type(name, "a float");
    return value;
  }

  bool flag(std::string_view name) {
    PyObject* value = required(name);
    if (value != Py_True && value != Py_False) fail_type(name, "a bool");
    return value == Py_True;
  }

  // The items of a list, all of a class that pybind11 knows; the list is copied, so that they stay.
  template <class T>
  Objects<T> objects(std::string_view name, const char* expected) {
    PyObject* value = required(name);
    if (!PyList_CheckExact(value)) fail_type(name, expected);
    held_ = py::reinterpret_steal<py::object>(PyList_AsTuple(value));
    if (!held_) throw py::error_already_set();
    Objects<T> items;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(held_.ptr()); ++i) {
      const py::handle item = PyTuple_GET_ITEM(held_.ptr(), i);
      if (!py::isinstance<T>(item)) fail_type(name, expected);
      items.push_back(&item.cast<const T&>());
    }
    return items;
  }

  [[noreturn]] void fail(const std::string& what) const {
    PyErr_Clear();
    throw py::type_error(std::string(py::str(function_)) + " " + what);
  }
  [[noreturn]] void bad_size(std::string_view name, int64_t n, const std::string& expected) const {
    throw py::value_error(std::string(py::str(function_)) + ": " + std::string(name) + " is " + std::to_string(n) +
                          ", expected " + expected);
  }

  // After the last one was read: raises TypeError if an argument was given that the function does not have.
  void finish() const {
    const uint64_t all = count_ == 64 ? ~uint64_t(0) : (uint64_t(1) << count_) - 1;
    if (read_ == all) return;
    for (Py_ssize_t i = 0; i < count_; ++i)
      if (!(read_ >> i & 1)) fail("has no argument '" + std::string(name_of(i)) + "'");
  }

 private:
  static constexpr int64_t kAnyWidth = -1;
  static constexpr int64_t kMostNumbers = int64_t(1) << 50;  // of any size alone: sums of a few sizes never overflow

  [[noreturn]] void too_large() const {
    throw py::value_error(std::string(py::str(function_)) + ": sizes multiply to more than memory can hold");
  }

  void look(std::string_view name, boundary::Type type, boundary::View& view) {
    PyObject* value = required(name);
    if (!view_of(value, type, view)) fail_array(name, type, "of the sizes of this call");
  }
  static bool view_of(PyObject* value, boundary::Type type, boundary::View& view) {
    return boundary::look(value, view) && view.is(type);
  }
  // The address of rows x width numbers, or of `rows` numbers with kAnyWidth
  void* checked(std::string_view name, boundary::Type type, int64_t rows, int64_t width) {
    boundary::View view;
    PyObject* value = required(name);
    const int64_t count = width == kAnyWidth ? rows : product({rows, width});
    const bool sized = view_of(value, type, view) && view.count() == count &&
                       (width == kAnyWidth || count == 0 || view.last() == width) && view.contiguous();
    if (!sized)
      fail_array(name, type,
                 width == kAnyWidth ? std::to_string(count) + " numbers"
                                    : std::to_string(rows) + " rows of " + std::to_string(width));
    return count ? view.tensor.data : nothing();
  }
  [[noreturn]] void fail_array(std::string_view name, boundary::Type type, const std::string& sizes) const {
    const auto i = find(name);
    throw std::runtime_error(std::string(py::str(function_)) + ": " + std::string(name) + " is " +
                             boundary::describe(values_[*i]) + ", expected " + type.name + ", " + sizes +
                             ", contiguous in the memory of the CPU; was it changed after it was passed?");
  }
  static std::string parts_text(int64_t part, int64_t rows, int64_t width) {
    return "more than " + std::to_string(part) + " parts of " + std::to_string(rows) + " rows of " +
           std::to_string(width);
  }
  static void* nothing() {
    alignas(64) static char none[64];
    return none;
  }
  int64_t index_of(std::string_view name, int64_t n, int64_t below) const {
    if (n < 0 || n >= below) bad_size(name, n, "an int in 0 to " + std::to_string(below - 1));
    return n;
  }

  [[noreturn]] void fail_type(std::string_view name, const char* expected) const {
    fail("has '" + std::string(name) + "' of the wrong type or range, expected " + expected);
  }

  std::string_view name_of(Py_ssize_t i) const {
    PyObject* name = PyTuple_GET_ITEM(names_, i);
    if (!PyUnicode_IS_COMPACT_ASCII(name)) return {};
    return {reinterpret_cast<const char*>(PyUnicode_1BYTE_DATA(name)), size_t(PyUnicode_GET_LENGTH(name))};
  }

  // Callers give the arguments in nearly the order in which they are read, so the search begins after the last one.
  std::optional<Py_ssize_t> find(std::string_view name) const {
    for (Py_ssize_t tried = 0, i = next_; tried < count_; ++tried, ++i) {
      if (i >= count_) i = 0;
      if (name_of(i) == name) return i;
    }
    return std::nullopt;
  }
  std::optional<Py_ssize_t> read(std::string_view name) {
    const auto i = find(name);
    if (i) read_ |= uint64_t(1) << *i, next_ = *i + 1;
    return i;
  }

  PyObject* required(std::string_view name) {
    const auto i = read(name);
    if (!i) fail("needs the argument '" + std::string(name) + "'");
    return values_[*i];
  }

  uint64_t to_unsigned(std::string_view name, PyObject* value) const {
    const uint64_t n = PyLong_Check(value) ? PyLong_AsUnsignedLongLong(value) : ~uint64_t(0);
    if (n == ~uint64_t(0) && (!PyLong_Check(value) || PyErr_Occurred())) fail_type(name, "an int of 0 or more");
    return n;
  }
  int64_t to_integer(std::string_view name, PyObject* value) const {
    const int64_t n = PyLong_Check(value) ? PyLong_AsLongLong(value) : -1;
    if (n == -1 && (!PyLong_Check(value) || PyErr_Occurred())) fail_type(name, "an int of 64 bits");
    return n;
  }

  PyObject* function_;
  PyObject* const* values_;
  PyObject* names_;
  Py_ssize_t count_, next_ = 0;
  uint64_t read_ = 0;  // bit i: argument i was read
  std::vector<std::unique_ptr<uint64_t[]>> copies_;
  py::object held_;
};
