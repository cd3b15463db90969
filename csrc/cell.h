// The forward and backward math of one recurrent cell, written once for every backend.
//
// A kernel (csrc/cpu, csrc/cuda) brings the pre-activations of one unit, or of a SIMD register of units, and calls
// the policy below. `V` is float, double or a vector type with + - * operators; `Math` supplies sigmoid(V) and tanh(V).
// A GRU or Elman cell is another policy with the same three members.
#pragma once

#if defined(__CUDACC__)
#define FASTLSTM_FN __host__ __device__ __forceinline__
#else
#define FASTLSTM_FN inline __attribute__((always_inline))
#endif

namespace fastlstm {

// Long short-term memory as torch.nn.LSTM defines it; gates in torch's order i, f, g, o.
//   i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
//   c = f c_prev + i g;  h = o tanh(c)
// Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
struct LstmCell {
  static constexpr int gates = 4;

  // In: gate[] holds the four pre-activations. Out: gate[] holds the activated gates; c and h are the new state.
  template <class Math, class V>
  static FASTLSTM_FN void forward(V (&gate)[gates], V c_prev, V& c, V& h) {
    gate[0] = Math::sigmoid(gate[0]);
    gate[1] = Math::sigmoid(gate[1]);
    gate[2] = Math::tanh(gate[2]);
    gate[3] = Math::sigmoid(gate[3]);
    c = gate[1] * c_prev + gate[0] * gate[2];
    h = gate[3] * Math::tanh(c);
  }

  // In: activated gates, the states around the step, dh and dc = gradients that arrive at h and c.
  // Out: d_gates[] = gradients at the pre-activations; dc_prev = gradient at c of the step before.
  template <class Math, class V>
  static FASTLSTM_FN void backward(const V (&gate)[gates], V c_prev, V c, V dh, V dc, V (&d_gates)[gates], V& dc_prev) {
    const V one = V(1.0f);
    const V i = gate[0], f = gate[1], g = gate[2], o = gate[3];
    const V tanh_c = Math::tanh(c);
    const V dc_total = dc + dh * o * (one - tanh_c * tanh_c);
    d_gates[0] = dc_total * g * i * (one - i);
    d_gates[1] = dc_total * c_prev * f * (one - f);
    d_gates[2] = dc_total * i * (one - g * g);
    d_gates[3] = dh * tanh_c * o * (one - o);
    dc_prev = dc_total * f;
  }
};

}  // namespace fastlstm
