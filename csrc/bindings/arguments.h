// Keyword arguments of the kernels' entry points.
//
// An entry point takes addresses, sizes and flags by name only: lib.lstm_forward(h=..., c=..., T=...). A name that is
// missing, unknown or of the wrong type raises TypeError, and nothing has run. Only what is read with a default may be
// left out. A call with 25 names takes 0.5 µs (a tuple and a list of unnamed numbers took 0.85); a dict spread by **
// adds 1.4 µs.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace py = pybind11;

class Arguments {
 public:
  // The arguments of a METH_FASTCALL | METH_KEYWORDS function; `function` is its name, a str.
  Arguments(PyObject* function, PyObject* const* values, Py_ssize_t positional, PyObject* names)
      : function_(function), values_(values), names_(names), count_(names ? PyTuple_GET_SIZE(names) : 0) {
    if (positional > 0) fail("takes keyword arguments only");
    if (count_ > 64) fail("takes at most 64 arguments");
  }

  // Whether the argument is given and not 0
  bool given(std::string_view name) const {
    const auto i = find(name);
    return i && PyObject_IsTrue(values_[*i]) == 1;
  }

  // An address, which must be given. That of an array without elements may be 0.
  template <class T>
  T* address(std::string_view name) {
    return reinterpret_cast<T*>(to_address(name, required(name)));
  }
  // An address; null if it is 0 or left out.
  template <class T>
  T* optional_address(std::string_view name) {
    const auto i = read(name);
    return i ? reinterpret_cast<T*>(to_address(name, values_[*i])) : nullptr;
  }
  // `must`: an address that must be given, else one that may be left out
  template <class T>
  T* address_if(bool must, std::string_view name) {
    return must ? address<T>(name) : optional_address<T>(name);
  }

  int64_t integer(std::string_view name) { return to_integer(name, required(name)); }
  int64_t integer(std::string_view name, int64_t if_missing) {
    const auto i = read(name);
    return i ? to_integer(name, values_[*i]) : if_missing;
  }
  uint64_t unsigned_integer(std::string_view name) { return to_address(name, required(name)); }

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

  // Copies of a list of objects of a class that pybind11 knows
  template <class T>
  std::vector<T> objects(std::string_view name) {
    PyObject* value = required(name);
    if (!PyList_CheckExact(value)) fail_type(name, "a list");
    std::vector<T> copies;
    copies.reserve(size_t(PyList_GET_SIZE(value)));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); ++i) {
      const py::handle item = PyList_GET_ITEM(value, i);
      if (!py::isinstance<T>(item)) fail_type(name, "a list of StepLayer");
      copies.push_back(item.cast<const T&>());
    }
    return copies;
  }

  // After the last one was read: raises TypeError if an argument was given that the function does not have.
  void finish() const {
    const uint64_t all = count_ == 64 ? ~uint64_t(0) : (uint64_t(1) << count_) - 1;
    if (read_ == all) return;
    for (Py_ssize_t i = 0; i < count_; ++i)
      if (!(read_ >> i & 1)) fail("has no argument '" + std::string(name_of(i)) + "'");
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    PyErr_Clear();
    throw py::type_error(std::string(py::str(function_)) + " " + what);
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

  uint64_t to_address(std::string_view name, PyObject* value) const {
    const uint64_t address = PyLong_Check(value) ? PyLong_AsUnsignedLongLong(value) : ~uint64_t(0);
    if (address == ~uint64_t(0) && (!PyLong_Check(value) || PyErr_Occurred())) fail_type(name, "an int of 0 or more");
    return address;
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
};

template <void (*call)(Arguments&)>
PyObject* entry_point(PyObject* function, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
  try {
    Arguments arguments(function, values, positional, names);
    call(arguments);
    Py_RETURN_NONE;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// Adds call(Arguments&) to the module as a function with keyword arguments that returns None.
template <void (*call)(Arguments&)>
void define(py::module_& m, const char* name, const char* doc) {
  auto* function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&entry_point<call>));
  auto* method = new PyMethodDef{name, function, METH_FASTCALL | METH_KEYWORDS, doc};  // lives as long as the process
  m.attr(name) = py::reinterpret_steal<py::object>(PyCFunction_New(method, py::str(name).release().ptr()));
}
