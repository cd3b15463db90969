// int8_forward and int8_step, and their packed layers (fastlstm/backends/cpu/int8.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "batch_sizes.h"
#include "bindings.h"
#include "entry_point.h"
#include "packed_layer.h"

using namespace fastlstm::cpu;

namespace {

constexpr int64_t kColumns = 64;
constexpr int64_t blocks_of(int64_t n, int64_t per_block) { return (n + per_block - 1) / per_block; }

// Int8Layer of csrc/kernels.h as Python makes it: it holds the tensors, so their memory stays.
struct HeldLayer {
  Int8Layer layer;
  int64_t H, P, starts;  // starts: rows of `start`, 1 or V
  std::vector<py::object> held;
};

// A tensor of a packed layer: `count` numbers of the type
template <class T>
const T* numbers(HeldLayer& to, const char* name, const py::object& tensor, int64_t count) {
  boundary::View view;
  if (!boundary::look(tensor.ptr(), view) || !view.contiguous() || !view.is(boundary::type_of<T>) ||
      view.count() != count || count < 1)
    throw std::runtime_error("Int8Layer: " + std::string(name) + " is " + boundary::describe(tensor.ptr()) +
                             ", expected " + std::to_string(count) + " packed numbers of " + boundary::type_of<T>.name +
                             " on the CPU");
  to.held.push_back(tensor);
  return view.data<const T>();
}

// (w, scale, subtracted) of a matrix with K columns, or None
Int8Matrix matrix(HeldLayer& to, const char* name, const py::object& given, int64_t blocks, int64_t K) {
  if (given.is_none()) return {};
  const auto parts = py::cast<std::vector<py::object>>(given);
  if (parts.size() != 3)
    throw std::runtime_error("Int8Layer: " + std::string(name) + " has " + std::to_string(parts.size()) +
                             " tensors, expected w, scale and subtracted");
  const int64_t columns = boundary::product({blocks, kColumns});
  const int64_t depth = boundary::product({blocks_of(K, kColumns), kColumns});
  return {.w = numbers<int8_t>(to, name, parts[0], boundary::product({columns, depth})),
          .scale = numbers<float>(to, name, parts[1], columns),
          .subtracted = numbers<int32_t>(to, name, parts[2], columns)};
}

HeldLayer held_layer(const py::object& ih, const py::object& hh, const py::object& hr, const py::object& start,
                     int64_t I, int64_t H, int64_t P) {
  constexpr int64_t kMost = int64_t(1) << 40;
  if (I < 1 || H < 1 || P < 1 || I > kMost || H > kMost || P > kMost || (hr.is_none() && P != H) || hh.is_none())
    throw std::runtime_error("Int8Layer: sizes must be 1 or more, P is H without hr, and hh is needed");
  const int64_t blocks = blocks_of(H, kUnitBlock), row = boundary::product({blocks, kColumns});
  boundary::View view;
  const int64_t starts = boundary::look(start.ptr(), view) && row > 0 ? std::max<int64_t>(1, view.count() / row) : 1;
  HeldLayer made{{}, H, P, starts, {}};
  made.layer = {.ih = matrix(made, "ih", ih, blocks, I),
                .hh = matrix(made, "hh", hh, blocks, P),
                .hr = matrix(made, "hr", hr, blocks_of(P, kColumns), H),
                .start = numbers<float>(made, "start", start, boundary::product({starts, row})),
                .I = I};
  return made;
}

void int8_forward(Arguments& a) {
  Shape s{.T = a.size("T"),
          .B = a.size("B"),
          .H = a.size("H", 1),
          .P = a.size("P", 1),
          .batch_sizes = nullptr,
          .reset = nullptr,
          .reverse = a.flag("reverse"),
          .rounding = Rounding::none,
          .threads = usable_threads(a.size("threads", 1))};
  const bool by_id = a.given("ids");
  const std::vector<Int8Layer> layers = checked_int8_layers(a, s.H, s.P, by_id ? kByTable : 0);
  if (layers.size() != 1) a.fail("runs one layer, and was given " + std::to_string(layers.size()));
  int64_t N = a.product({s.T, s.B});
  s.batch_sizes = a.given("batch_sizes") ? batch_sizes_of(a, s.T, s.B, N) : a.absent<const int64_t>("batch_sizes");
  a.product({N + s.B, 9 * (s.H + s.P + layers[0].I) + 1024});  // more than any array or scratch memory of rows
  const int64_t row = blocks_of(s.H, kUnitBlock) * kColumns, V = by_id ? a.rows_of<const float>("table", row) : 0;
  const Int8Forward args{
      .h = a.array<float>("h", N, s.P),
      .h_n = a.array<float>("h_n", s.B, s.P),
      .c_n = a.array<float>("c_n", s.B, s.H),
      .layer = layers.data(),
      .x = by_id ? a.absent<const float>("x") : a.array<const float>("x", N, layers[0].I),
      .table = by_id ? a.array<const float>("table", a.product({V, row})) : a.absent<const float>("table"),
      .ids = by_id ? a.ids("ids", N, V) : a.absent<const int64_t>("ids"),
      .h0 = a.array<const float>("h0", s.B, s.P),
      .c0 = a.array<const float>("c0", s.B, s.H)};
  a.finish();
  py::gil_scoped_release release;
  int8_kernels().forward(s, args);
}

void int8_step(Arguments& a) {
  const int64_t B = a.size("B", 1), H = a.size("H", 1), P = a.size("P", 1);
  const std::vector<Int8Layer> layers = checked_int8_layers(a, H, P, 0);
  const int64_t rows = a.product({int64_t(layers.size()), B});
  a.product({rows + B, 9 * (H + P + layers[0].I) + 1024});  // more than any scratch memory
  const bool projected = layers[0].hr.w != nullptr;
  const StepArgs<Int8Layer> args = step_arguments(a, layers, B, H, P, projected, usable_threads(a.size("threads", 1)));
  a.finish();
  py::gil_scoped_release release;
  int8_kernels().step(args);
}

}  // namespace

std::vector<Int8Layer> checked_int8_layers(Arguments& a, int64_t H, int64_t P, int64_t V) {
  const Objects<HeldLayer> given = a.objects<HeldLayer>("layers", "a list of Int8Layer");
  std::vector<Int8Layer> layers;
  for (const HeldLayer* one : given) {
    const bool first = layers.empty(), by_id = first && V != 0;
    const int64_t starts = first && V > 0 ? V : 1;
    const bool same = one->H == H && one->P == P && one->starts == starts && (first || one->layer.I == P);
    const bool projected = first || (one->layer.hr.w != nullptr) == (layers[0].hr.w != nullptr);
    if (!same || !projected || (!one->layer.ih.w && !by_id))
      throw std::runtime_error("layer " + std::to_string(layers.size()) + " was packed for other sizes than H = " +
                               std::to_string(H) + ", P = " + std::to_string(P) + ", or without its input side");
    layers.push_back(one->layer);
  }
  if (layers.empty()) a.fail("needs at least one layer");
  return layers;
}

void bind_int8(py::module_& m) {
  using py::arg;
  py::class_<HeldLayer>(
      m, "Int8Layer", py::module_local(),
      "A layer's packed int8 weights, as tensors that it holds: Int8Layer in csrc/kernels.h. A matrix "
      "is (w, scale, subtracted) or None.")
      .def(py::init(&held_layer), py::kw_only(), arg("ih"), arg("hh"), arg("hr"), arg("start"), arg("I"), arg("H"),
           arg("P"));
  define<&int8_forward>(
      m, "int8_forward",
      "Runs one layer in one direction with int8 weights. Keywords: layers (a list of one Int8Layer), "
      "the fields of Shape and the other fields of Int8Forward in csrc/kernels.h.");
  define<&int8_step>(
      m, "int8_step",
      "One step of all layers with int8 weights. Keywords: layers (a list of Int8Layer), the other fields "
      "of StepArgs in csrc/kernels.h.");
}
