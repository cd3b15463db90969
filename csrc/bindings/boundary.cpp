// See boundary.h.
#include "boundary.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace boundary {

namespace {

using Ref = py::object;
Ref owned(PyObject* fresh) { return py::reinterpret_steal<py::object>(fresh); }

// A function of torch's stable C interface on a tensor's handle; 0 if all is well
using HandleFunction = int32_t (*)(void* handle, int64_t* out);

// Set once and never freed.
struct Torch {
  const dlpack::ExchangeApi* api = nullptr;
  PyObject *tensor = nullptr, *parameter = nullptr;
  PyObject* is_neg = nullptr;
  PyObject* has_memory = nullptr;  // True if the dispatcher knows a tensor as an ordinary one or a negated view of one
  PyObject* memory = nullptr;      // of a tensor: what `read_memory` takes, or None
  PyObject* bytes_left = nullptr;  // of a tensor: bytes of its storage from its first element on
  PyObject* describe = nullptr;    // of any object: str
  Py_ssize_t handle_at = -1;       // where in a Python tensor its handle lies, in bytes; -1: not known
  HandleFunction storage_bytes = nullptr, storage_offset = nullptr;
  Py_ssize_t keys_at = -1;        // where the dispatch keys lie in what a handle points to, in bytes; -1: not known
  uint64_t plain_keys[2] = {};    // of an ordinary tensor on the CPU, made outside and in inference mode
  uint64_t negated_keys[2] = {};  // of their negated views
} torch_;

bool is_false(PyObject* value) {
  const int truth = value ? PyObject_IsTrue(value) : -1;
  if (truth < 0) PyErr_Clear();
  return truth == 0;
}

bool is_true(PyObject* value) {
  const int truth = value ? PyObject_IsTrue(value) : -1;
  if (truth < 0) PyErr_Clear();
  return truth == 1;
}

// One word of the tuple that Python describes a tensor with
int64_t word(PyObject* tuple, Py_ssize_t i) { return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)); }

// From (address, code, bits, bytes left, *shape, *strides)
bool read_memory(PyObject* object, View& view) {
  const Ref told = owned(PyObject_CallOneArg(torch_.memory, object));
  if (!told || !PyTuple_CheckExact(told.ptr())) return PyErr_Clear(), false;
  PyObject* t = told.ptr();
  const Py_ssize_t dims = (PyTuple_GET_SIZE(t) - 4) / 2;
  if (dims < 0 || dims > dlpack::kMostDims) return false;
  for (Py_ssize_t i = 0; i < 2 * dims; ++i) view.own[i] = word(t, 4 + i);
  void* address = PyLong_AsVoidPtr(PyTuple_GET_ITEM(t, 0));
  view.tensor = {address,  dlpack::kCpu,    0, int32_t(dims), uint8_t(word(t, 1)), uint8_t(word(t, 2)), 1,
                 view.own, view.own + dims, 0};
  view.bytes_left = word(t, 3);
  return PyErr_Occurred() ? (PyErr_Clear(), false) : true;
}

// Elements from the first to behind the last; -1 if that is not to be written down.
int64_t extent(const dlpack::Tensor& t) {
  int64_t last = 0;
  for (int32_t d = 0; d < t.ndim; ++d) {
    const int64_t step = product({t.shape[d] - 1, t.strides[d]});
    if (step < 0 || __builtin_add_overflow(last, step, &last)) return -1;
  }
  return last + 1;
}

int64_t bytes_left(const View& view) {
  if (view.bytes_left >= 0) return view.bytes_left;
  if (torch_.handle_at >= 0) {
    void* handle = reinterpret_cast<char*>(view.object) + torch_.handle_at;
    int64_t bytes = 0, offset = 0;
    if (torch_.storage_bytes(handle, &bytes) != 0 || torch_.storage_offset(handle, &offset) != 0) return -1;
    return bytes - offset * (view.tensor.bits / 8);
  }
  const Ref left = owned(PyObject_CallOneArg(torch_.bytes_left, view.object));
  const int64_t bytes = left ? PyLong_AsLongLong(left.ptr()) : -1;
  PyErr_Clear();
  return bytes;
}

bool is_short(const View& view) {
  const int64_t bytes = product({extent(view.tensor), view.tensor.bits / 8});
  return bytes < 0 || bytes_left(view) < bytes;
}

// The 8 bytes at an offset
uint64_t word_at(const void* object, Py_ssize_t offset) {
  uint64_t value;
  std::memcpy(&value, static_cast<const char*>(object) + offset, sizeof value);
  return value;
}

// Where the handle of torch's C++ tensor lies in the Python object: `cdata` is what the handle holds.
Py_ssize_t handle_in(PyObject* probe, uintptr_t cdata) {
  const Py_ssize_t size = Py_TYPE(probe)->tp_basicsize;
  for (Py_ssize_t at = Py_ssize_t(sizeof(PyObject)); at + 8 <= size; at += 8)
    if (word_at(probe, at) == cdata) return at;
  return -1;
}

// Where the dispatch keys lie in torch's C++ tensor: the first place that holds what Python says for every probe, whose
// keys differ. The keys are the last member, at byte 168 in torch 2.13 and 176 in 2.11: a search that ends where they
// are found reads nothing behind it. keys: a list of (address of the C++ tensor, its keys).
Py_ssize_t keys_in(const py::list& keys) {
  for (Py_ssize_t at = 0; at + 8 <= 192; at += 8) {
    const bool found = std::all_of(keys.begin(), keys.end(), [at](const py::handle& probe) {
      const auto [cdata, expected] = probe.cast<std::pair<uintptr_t, uint64_t>>();
      return word_at(reinterpret_cast<void*>(cdata), at) == expected;
    });
    if (found) return at;
  }
  return -1;
}

enum class Keys { unknown, plain, negated, other };
Keys keys_of(PyObject* tensor) {
  if (torch_.keys_at < 0) return Keys::unknown;
  const void* impl = reinterpret_cast<void*>(word_at(tensor, torch_.handle_at));
  if (!impl) return Keys::other;
  const uint64_t keys = word_at(impl, torch_.keys_at);
  const auto is_one_of = [keys](const uint64_t (&two)[2]) { return keys == two[0] || keys == two[1]; };
  return is_one_of(torch_.plain_keys) ? Keys::plain : is_one_of(torch_.negated_keys) ? Keys::negated : Keys::other;
}

// Takes what native_boundary of fastlstm/_torch_compat.py gives.
void set_up(const py::dict& objects) {
  const auto keep = [&](const char* key) { return py::object(objects[key]).release().ptr(); };
  const auto number = [&](const char* key) { return objects[key].cast<uintptr_t>(); };
  Torch torch;
  torch.tensor = keep("tensor"), torch.parameter = keep("parameter"), torch.is_neg = keep("is_neg");
  torch.has_memory = keep("has_memory"), torch.memory = keep("memory"), torch.bytes_left = keep("bytes_left");
  torch.describe = keep("describe");
  const py::object capsule = objects["exchange_api"];
  if (PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsule)) {
    torch.api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
    if (torch.api->major != dlpack::kMajor || !torch.api->look) torch.api = nullptr;
  }
  // The probe has a storage of 12 float32 numbers and begins with the fifth.
  const py::object probe = objects["probe"];
  torch.storage_bytes = reinterpret_cast<HandleFunction>(number("storage_bytes"));
  torch.storage_offset = reinterpret_cast<HandleFunction>(number("storage_offset"));
  if (torch.storage_bytes && torch.storage_offset) {
    torch.handle_at = handle_in(probe.ptr(), number("probe_cdata"));
    void* handle = reinterpret_cast<char*>(probe.ptr()) + torch.handle_at;
    int64_t bytes = 0, offset = 0;
    if (torch.handle_at < 0 || torch.storage_bytes(handle, &bytes) != 0 || torch.storage_offset(handle, &offset) != 0 ||
        bytes != 48 || offset != 4)
      torch.handle_at = -1;
  }
  const py::list keys = objects["keys"];  // of tensors made outside and in inference mode, then of their negated views
  if (torch.handle_at >= 0 && keys.size() == 4) torch.keys_at = keys_in(keys);
  for (size_t k = 0; torch.keys_at >= 0 && k < 2; ++k) {
    torch.plain_keys[k] = keys[k].cast<std::pair<uintptr_t, uint64_t>>().second;
    torch.negated_keys[k] = keys[k + 2].cast<std::pair<uintptr_t, uint64_t>>().second;
  }
  torch_ = torch;
}

}  // namespace

int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t n = 1;
  bool fits = true;
  for (int64_t size : sizes) fits &= size >= 0 && !__builtin_mul_overflow(n, size, &n);
  return fits && n <= int64_t(1) << 60 ? n : -1;
}

bool View::has(std::initializer_list<int64_t> sizes) const {
  return tensor.ndim == int32_t(sizes.size()) && std::equal(sizes.begin(), sizes.end(), tensor.shape);
}

int64_t View::count() const {
  int64_t n = 1;
  for (int32_t d = 0; d < tensor.ndim; ++d) n *= tensor.shape[d];
  return n;
}

bool View::contiguous() const {
  int64_t expected = 1;
  for (int d = tensor.ndim; d-- > 0; expected *= tensor.shape[d])
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return count() == 0;
  return true;
}

namespace {
bool has_memory(PyObject* object) { return is_true(owned(PyObject_CallOneArg(torch_.has_memory, object)).ptr()); }
}  // namespace

bool is_own_class(PyObject* object) {
  return object && (Py_TYPE(object) == reinterpret_cast<PyTypeObject*>(torch_.tensor) ||
                    Py_TYPE(object) == reinterpret_cast<PyTypeObject*>(torch_.parameter));
}

bool find_memory(PyObject* object, View& view) {
  if (!object || !torch_.tensor) return false;
  const bool own = is_own_class(object);
  if (!own && !PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(torch_.tensor))) return false;
  const Keys keys = keys_of(object);
  if (keys == Keys::other) return false;
  if (keys == Keys::unknown && !own && !has_memory(object)) return false;
  view.object = object;
  view.bytes_left = -1;
  view.plain = keys == Keys::plain, view.negated = keys == Keys::negated;
  if (!torch_.api) return read_memory(object, view);
  if (torch_.api->look(object, &view.tensor) != 0) return PyErr_Clear(), false;
  return true;
}

bool is_usable(const View& view) {
  const dlpack::Tensor& t = view.tensor;
  if (view.negated || t.device_type != dlpack::kCpu || t.lanes != 1 || t.byte_offset || (t.ndim && !t.strides))
    return false;
  if (view.count() == 0) return true;
  if (!t.data || is_short(view)) return false;
  return view.plain || is_false(owned(PyObject_Vectorcall(torch_.is_neg, &view.object, 1, nullptr)).ptr());
}

bool is_cut_off(const View& view) {
  if (view.tensor.device_type != dlpack::kCpu || view.count() == 0 || (view.tensor.data && !is_short(view)))
    return false;
  return view.plain || view.negated || has_memory(view.object);
}

bool reads_natively() { return torch_.api && torch_.handle_at >= 0; }

std::string describe(PyObject* object) {
  const Ref text = torch_.describe ? owned(PyObject_CallOneArg(torch_.describe, object)) : Ref();
  if (!text) PyErr_Clear();
  return text && PyUnicode_Check(text.ptr()) ? std::string(py::str(text)) : std::string(Py_TYPE(object)->tp_name);
}

}  // namespace boundary

namespace {

// Whether a kernel may use a tensor of torch's own classes as it stands
PyObject* is_plain(PyObject*, PyObject* object) {
  boundary::View view;
  return PyBool_FromLong(boundary::is_own_class(object) && boundary::look(object, view));
}

// Whether an ordinary tensor on the CPU has sizes and strides beyond its storage, which was freed or made shorter
PyObject* is_cut_off(PyObject*, PyObject* object) {
  boundary::View view;
  return PyBool_FromLong(boundary::find_memory(object, view) && boundary::is_cut_off(view));
}

PyMethodDef methods[] = {
    {"is_plain", is_plain, METH_O, "Whether the memory of a tensor, of torch's own classes, may be used as it stands."},
    {"is_cut_off", is_cut_off, METH_O, "Whether a tensor on the CPU is larger than its storage."}};

}  // namespace

void bind_boundary(py::module_& m) {
  m.def("set_up_boundary", &boundary::set_up);
  for (PyMethodDef& method : methods)
    m.attr(method.ml_name) = py::reinterpret_steal<py::object>(PyCFunction_New(&method, nullptr));
}
