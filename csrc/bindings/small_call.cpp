// Fast path of small-batch inference: T·B <= 4, float32 CPU, no gradients (fastlstm/backends/cpu/small_call.py). Checks
// and all layers run in one C++ call from Python objects to the kernel and back; anything else returns None, with
// nothing done.
//
// In Python the checks took longer than the work: 16 of 40 µs for one step of 2 layers of 128 units. Tensors are read
// at the boundary (boundary.h). Every call checks everything; only torch's functions are stored.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>
#include <utility>
#include <vector>

#include "bindings.h"
#include "boundary.h"

namespace {

constexpr int64_t kMostRows = 4;  // T · B up to which reading W_hh unpacked beats packing it

using boundary::View;
using Ref = py::object;  // owns one reference, or none
Ref owned(PyObject* fresh) { return py::reinterpret_steal<py::object>(fresh); }

// Set once and never freed: the module class, torch's functions, context variables of the dispatch.
struct Torch {
  PyObject* lstm = nullptr;
  PyObject *contiguous = nullptr, *new_empty = nullptr, *threads = nullptr;
  PyObject* observers = nullptr;     // tuple of functions; each is false while torch's operations are not observed
  PyObject* drop_options = nullptr;  // tuple of names: what a module drops in training, each 0 or a probability
  PyObject* forward_ad = nullptr;    // the namespace of torch.autograd.forward_ad
  PyObject *requested = nullptr, *last_call = nullptr, *plan = nullptr;
} torch_;

PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }

// Interned once. The attributes of a module that are read here.
struct Names {
  PyObject *L = name("num_layers"), *H = name("hidden_size"), *I = name("input_size"), *P = name("proj_size"),
           *bias = name("bias"), *batch_first = name("batch_first"), *bidirectional = name("bidirectional"),
           *training = name("training"), *parameters = name("_parameters"), *order = name("_flat_weights_names"),
           *level = name("_current_level");
};
const Names& names() {
  static const Names all;
  return all;
}

bool is_false(PyObject* value) {
  const int truth = value ? PyObject_IsTrue(value) : -1;
  if (truth < 0) PyErr_Clear();
  return truth == 0;
}

// A plain float32 tensor on the CPU that has elements
bool is_float32(const View& view) { return view.is(boundary::kFloat32) && view.count() > 0; }
// Of torch's own classes: another may answer torch's functions itself, the LSTM too.
bool look_float32(PyObject* object, View& view) {
  return boundary::is_own_class(object) && boundary::look(object, view) && is_float32(view);
}

// Gradients and torch.func: asked before the size of x, since a tensor that torch.func has wrapped has no memory, and
// torch takes a millisecond to say so.
constexpr Py_ssize_t kAskedFirst = 2;

// True if none of the observers number first, …, last - 1 is active.
bool unobserved(Py_ssize_t first, Py_ssize_t last) {
  for (Py_ssize_t k = first; k < last; ++k)
    if (!is_false(owned(PyObject_CallNoArgs(PyTuple_GET_ITEM(torch_.observers, k))).ptr())) return false;
  return true;
}

// True if, besides what is asked first, no mode, tracer, autocast, profiler or forward AD is active, and no other
// backend is requested.
bool bypass_allowed() {
  if (!unobserved(kAskedFirst, PyTuple_GET_SIZE(torch_.observers))) return false;
  PyObject* level = PyDict_GetItemWithError(torch_.forward_ad, names().level);
  if (!level || PyLong_AsLong(level) >= 0) return PyErr_Clear(), false;
  PyObject* requested = nullptr;
  if (PyContextVar_Get(torch_.requested, nullptr, &requested) < 0) return PyErr_Clear(), false;
  const Ref holder = owned(requested);
  if (requested == Py_None) {
    const char* variable = std::getenv("FASTLSTM_BACKEND");
    return !variable || !*variable || std::strcmp(variable, "cpu") == 0;
  }
  return PyUnicode_CompareWithASCIIString(requested, "") == 0 ||
         PyUnicode_CompareWithASCIIString(requested, "cpu") == 0;
}

int64_t whole_number(PyObject* fields, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(fields, key);
  const int64_t number = value && PyLong_CheckExact(value) ? PyLong_AsLongLong(value) : -1;
  PyErr_Clear();
  return number;
}

// 0 or 1; -1 for anything else
int flag(PyObject* fields, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(fields, key);
  PyErr_Clear();
  return value == Py_True ? 1 : value == Py_False ? 0 : -1;
}

// One call: sizes of the module, inputs, outputs.
class SmallModuleCall {
 public:
  SmallModuleCall(PyObject* module, PyObject* x, PyObject* hx) : module_(module), x_given_(x), hx_(hx) {}

  // (out, (h_n, c_n)), or None with nothing done; null with an exception if memory runs out.
  PyObject* run() {
    if (!unobserved(0, kAskedFirst) || !few_rows() || !bypass_allowed() || !sizes() || !input() || !state() ||
        !weights() || !outputs())
      return Py_NewRef(Py_None);
    if (!compute()) return PyErr_NoMemory();
    Ref token = owned(PyContextVar_Set(torch_.last_call, torch_.plan));
    if (!token) return nullptr;
    Ref pair = owned(PyTuple_Pack(2, h_n_.ptr(), c_n_.ptr()));
    return pair ? PyTuple_Pack(2, out_.ptr(), pair.ptr()) : nullptr;
  }

 private:
  // Asked early: most calls that this path does not take have more rows.
  bool few_rows() {
    if (!boundary::is_own_class(x_given_) || !boundary::find_memory(x_given_, x_) || x_.tensor.ndim < 2 ||
        x_.tensor.ndim > 3)
      return false;
    return x_.tensor.shape[0] <= kMostRows && (x_.tensor.ndim == 2 || x_.tensor.shape[1] <= kMostRows);
  }

  bool sizes() {
    if (Py_TYPE(module_) != reinterpret_cast<PyTypeObject*>(torch_.lstm)) return false;
    const Names& n = names();
    fields_ = owned(PyObject_GenericGetDict(module_, nullptr));
    if (!fields_) return PyErr_Clear(), false;
    PyObject* f = fields_.ptr();
    L = whole_number(f, n.L), H = whole_number(f, n.H), I = whole_number(f, n.I);
    bias_ = flag(f, n.bias), batch_first_ = flag(f, n.batch_first);
    const int training = flag(f, n.training);
    if (L < 1 || H < 1 || I < 1 || bias_ < 0 || batch_first_ < 0 || training < 0) return false;
    if (flag(f, n.bidirectional) != 0 || whole_number(f, n.P) != 0) return false;
    for (Py_ssize_t k = 0; training && k < PyTuple_GET_SIZE(torch_.drop_options); ++k)
      if (!is_false(owned(PyObject_GetAttr(module_, PyTuple_GET_ITEM(torch_.drop_options, k))).ptr())) return false;
    return true;
  }

  bool input() {
    if (!look_float32(x_given_, x_)) return false;  // anew: reading the module's options may have run other code
    batched_ = x_.tensor.ndim == 3;
    if ((x_.tensor.ndim != 2 && !batched_) || x_.tensor.shape[x_.tensor.ndim - 1] != I) return false;
    T = x_.tensor.shape[batched_ && batch_first_ ? 1 : 0], B = batched_ ? x_.tensor.shape[batch_first_ ? 0 : 1] : 1;
    if (T < 1 || B < 1 || T > kMostRows || B > kMostRows || T * B > kMostRows) return false;
    if (batch_first_ && T > 1 && B > 1) return false;  // otherwise (B, T, I) and (T, B, I) are the same memory
    if (x_.contiguous()) return true;
    x_copy_ = owned(PyObject_Vectorcall(torch_.contiguous, &x_given_, 1, nullptr));
    if (!x_copy_) PyErr_Clear();
    return look_float32(x_copy_.ptr(), x_) && x_.contiguous() && x_.count() == T * B * I;
  }

  bool is_state(const View& view) const {
    return view.contiguous() && (batched_ ? view.has({L, B, H}) : view.has({L, H}));
  }

  bool state() {
    if (hx_ == Py_None) return true;
    if (!PyTuple_CheckExact(hx_) || PyTuple_GET_SIZE(hx_) != 2) return false;
    return look_float32(PyTuple_GET_ITEM(hx_, 0), h0_) && is_state(h0_) &&
           look_float32(PyTuple_GET_ITEM(hx_, 1), c0_) && is_state(c0_);
  }

  Ref field(PyObject* key) const {
    return py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(fields_.ptr(), key));
  }

  // The current parameters. References are held, since torch's functions and the kernel release the GIL.
  bool weights() {
    const Ref parameters = field(names().parameters), order = field(names().order);
    const int per_layer = bias_ ? 4 : 2;
    if (!parameters || !order || !PyDict_Check(parameters.ptr()) || !PyList_CheckExact(order.ptr()))
      return PyErr_Clear(), false;
    if (PyList_GET_SIZE(order.ptr()) != L * per_layer) return false;
    layers_.resize(size_t(L));
    held_.reserve(size_t(L * per_layer));
    for (int64_t l = 0; l < L; ++l) {
      const float* at[4] = {nullptr, nullptr, nullptr, nullptr};
      for (int k = 0; k < per_layer; ++k) {
        PyObject* key = PyList_GetItem(order.ptr(), l * per_layer + k);
        PyObject* weight = key ? PyDict_GetItemWithError(parameters.ptr(), key) : nullptr;
        held_.push_back(py::reinterpret_borrow<py::object>(weight));
        View view;
        if (!look_float32(weight, view) || !view.contiguous()) return PyErr_Clear(), false;
        if (!(k > 1 ? view.has({4 * H}) : view.has({4 * H, k == 0 && l == 0 ? I : H}))) return false;
        at[k] = view.data<float>();
      }
      layers_[size_t(l)] = {at[0], at[1], at[2], at[3]};
    }
    return true;
  }

  // A new tensor as x.new_empty makes it
  Ref made(std::initializer_list<int64_t> sizes) {
    PyObject* args[4] = {x_.object};
    size_t n = 1;
    for (int64_t size : sizes) args[n++] = PyLong_FromLongLong(size);
    Ref result = owned(PyObject_Vectorcall(torch_.new_empty, args, n, nullptr));
    while (n > 1) Py_XDECREF(args[--n]);
    if (!result) PyErr_Clear();
    return result;
  }

  bool outputs() {
    if (batched_) {
      out_ = batch_first_ ? made({B, T, H}) : made({T, B, H});
      h_n_ = made({L, B, H}), c_n_ = made({L, B, H});
    } else {
      out_ = made({T, H}), h_n_ = made({L, H}), c_n_ = made({L, H});
    }
    return look_float32(out_.ptr(), out_view_) && out_view_.contiguous() && out_view_.count() == T * B * H &&
           look_float32(h_n_.ptr(), h_view_) && is_state(h_view_) && look_float32(c_n_.ptr(), c_view_) &&
           is_state(c_view_);
  }

  bool compute() {
    Ref count = owned(PyObject_CallNoArgs(torch_.threads));
    const long threads = count ? PyLong_AsLong(count.ptr()) : 1;
    PyErr_Clear();
    const fastlstm::cpu::SmallCall call{out_view_.data<float>(),
                                        h_view_.data<float>(),
                                        c_view_.data<float>(),
                                        x_.data<float>(),
                                        h0_.data<float>(),
                                        c0_.data<float>(),
                                        layers_.data(),
                                        L,
                                        T,
                                        B,
                                        I,
                                        H,
                                        usable_threads(threads < 1 ? 1 : threads)};
    bool enough = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
      kernels().small_call_f32(call);
    } catch (const std::bad_alloc&) {
      enough = false;
    }
    Py_END_ALLOW_THREADS;
    return enough;
  }

  PyObject *module_, *x_given_, *hx_;  // borrowed from the caller, who holds them
  Ref fields_, x_copy_, out_, h_n_, c_n_;
  int64_t L = 0, T = 0, B = 0, I = 0, H = 0;
  int bias_ = 0, batch_first_ = 0;
  bool batched_ = false;
  View x_, h0_, c0_, out_view_, h_view_, c_view_;
  std::vector<Ref> held_;
  std::vector<fastlstm::cpu::PlainLayer> layers_;
};

PyObject* small_call(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 3) {
    PyErr_SetString(PyExc_TypeError, "small_call takes a module, x and hx");
    return nullptr;
  }
  if (!torch_.lstm) Py_RETURN_NONE;
  try {
    return SmallModuleCall(args[0], args[1], args[2]).run();
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

// Takes the objects of fastlstm/backends/cpu/small_call.py; false where tensors are read through Python functions,
// which takes longer than this path saves.
bool set_up_small_call(const py::dict& objects) {
  if (!boundary::reads_natively()) return false;
  const auto keep = [&](const char* key) { return py::object(objects[key]).release().ptr(); };
  torch_ = {keep("lstm"),         keep("contiguous"), keep("new_empty"), keep("get_num_threads"), keep("observers"),
            keep("drop_options"), keep("forward_ad"), keep("requested"), keep("last_call"),       keep("plan")};
  return true;
}

PyMethodDef small_call_method = {"small_call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(small_call)),
                                 METH_FASTCALL, "(out, (h_n, c_n)) of a small module call, or None."};

}  // namespace

void bind_small_call(py::module_& m) {
  m.def("set_up_small_call", &set_up_small_call);
  m.attr("small_call") = py::reinterpret_steal<py::object>(PyCFunction_New(&small_call_method, nullptr));
}
