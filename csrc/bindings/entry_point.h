// A function of the module that takes `Arguments`, and C++ exceptions as Python's.
#pragma once
#include <new>
#include <stdexcept>

#include "arguments.h"

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
  } catch (const std::length_error&) {  // of a std::vector
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
