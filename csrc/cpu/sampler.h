// One draw from a row of scores: temperature, top-k, top-p, and Gumbel-max with a counter-based generator.
//
// The noise of id v of stream b at its n-th draw is a function of (seed, b, n, v) alone: Philox4x32-10 (Salmon et al.
// 2011), key = seed, counter = (v / 4, n, b, n >> 32), word v % 4. A text depends neither on the number of threads nor
// on the other streams. The id with the largest score / temperature + noise, noise = -log(-log(u)), is a draw from the
// softmax (Gumbel 1954).
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../kernels.h"
#include "math.h"

namespace FASTLSTM_ISA {

using fastlstm::cpu::SamplingOptions;

struct Words {
  uint32_t at[4];
};

FASTLSTM_INLINE Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    const uint64_t a = uint64_t(counter.at[0]) * 0xD2511F53u, b = uint64_t(counter.at[2]) * 0xCD9E8D57u;
    counter = {
        {uint32_t(b >> 32) ^ counter.at[1] ^ key0, uint32_t(b), uint32_t(a >> 32) ^ counter.at[3] ^ key1, uint32_t(a)}};
  }
  return counter;
}

// s (1 + z/3 + z²/5 + …) with z = s²: half of log((1 + s) / (1 - s))
template <int n>
FASTLSTM_INLINE Vec<double> atanh_series(Vec<double> z) {
  if constexpr (n == 21)
    return Vec<double>(1.0 / 21);
  else
    return atanh_series<n + 2>(z) * z + Vec<double>(1.0 / n);
}

// Natural logarithm of a positive, normal, finite number; relative error below 1e-15.
FASTLSTM_INLINE Vec<double> log(Vec<double> x) {
  using D = Vec<double>;
  const auto bits = (D::Int)x.v;
  const auto one = D::Int{} + 0x3ff0000000000000;
  const auto high = (bits & 0xfffffffffffff) > D::Int{} + 0x6a09e667f3bcd;  // above sqrt(2): take half of it
  const D m = (D::Raw)(((bits & 0xfffffffffffff) | one) + (high & (D::Int{} - 0x10000000000000)));
  const auto exponent = (bits >> 52) - 1023 - high;  // a true lane is -1
  const D e = D((D::Raw)(exponent + 0x4338000000000000)) - D(6755399441055744.0);
  const D s = (m - D(1.0)) / (m + D(1.0)), z = s * s;
  return e * D(ExpConstants<double>::ln2_hi) + (s + s) * atanh_series<1>(z) + e * D(ExpConstants<double>::ln2_lo);
}

// noise[v] for v < n, rounded up to a multiple of 8
inline void gumbel(double* noise, int64_t n, uint64_t seed, uint64_t position, uint64_t stream) {
  using D = Vec<double>;
  for (int64_t v = 0; v < n; v += 8) {
    double u[8];
    for (int half = 0; half < 2; ++half) {
      const Words counter = {{uint32_t(v / 4 + half), uint32_t(position), uint32_t(stream), uint32_t(position >> 32)}};
      const Words words = philox(counter, uint32_t(seed), uint32_t(seed >> 32));
      for (int i = 0; i < 4; ++i) u[4 * half + i] = (double(words.at[i]) + 0.5) * 0x1p-32;
    }
    for (int i = 0; i < 8; i += D::width) (D(0.0) - log(D(0.0) - log(D::load(u + i)))).store(noise + v + i);
  }
}

// Draws for one thread; holds scratch of V numbers.
class Sampler {
 public:
  static constexpr int64_t kFailed = -2;  // no finite score is left, or one is NaN

  Sampler(const SamplingOptions& options, int64_t vocabulary)
      : o(options), V(vocabulary), key(size_t(V)), noise(size_t(V + 7) / 8 * 8), kept(size_t(V)) {}

  // Returns an id below V, or kFailed. transitions: (V,), below 0 where an id is forbidden, or null.
  int64_t draw(const float* scores, const int32_t* transitions, uint64_t position, uint64_t stream) {
    float top = -std::numeric_limits<float>::infinity();
    bool finite = true;
    for (int64_t v = 0; v < V; ++v) {
      finite = finite && scores[v] < std::numeric_limits<float>::infinity();  // NaN: false
      const float x = transitions && transitions[v] < 0 ? -std::numeric_limits<float>::infinity() : scores[v];
      key[size_t(v)] = x;
      top = x > top ? x : top;
    }
    if (!finite || top == -std::numeric_limits<float>::infinity()) return kFailed;
    if (o.temperature == 0) return std::find(key.begin(), key.end(), double(top)) - key.begin();
    for (double& k : key) k = (k - double(top)) / o.temperature;
    gumbel(noise.data(), V, o.seed, position, stream);
    if ((o.top_k == 0 || o.top_k >= V) && o.top_p >= 1) return best_of_all();
    return best_of(truncate());
  }

  // log softmax of the scores (temperature 1, nothing forbidden) at one id
  float log_probability(const float* scores, int64_t id) const {
    const double top = *std::max_element(scores, scores + V);
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) sum += std::exp(double(scores[v]) - top);
    return float(double(scores[id]) - top - std::log(sum));
  }

 private:
  int64_t best_of_all() const {
    int64_t best = 0;
    double most = -std::numeric_limits<double>::infinity();
    for (int64_t v = 0; v < V; ++v)
      if (const double x = key[size_t(v)] + noise[size_t(v)]; x > most) most = x, best = v;
    return best;
  }

  int64_t best_of(size_t from) const {
    int64_t best = kept[from];
    auto value = [&](int64_t v) { return key[size_t(v)] + noise[size_t(v)]; };
    for (size_t i = from + 1; i < last; ++i)
      if (value(kept[i]) > value(best) || (value(kept[i]) == value(best) && kept[i] < best)) best = kept[i];
    return best;
  }

  // Leaves in kept[returned … last) the ids that top-k and, of those, top-p keep. Among equal scores the lower id wins.
  size_t truncate() {
    const auto before = [&](int64_t a, int64_t b) {
      return key[size_t(a)] > key[size_t(b)] || (key[size_t(a)] == key[size_t(b)] && a < b);
    };
    for (int64_t v = 0; v < V; ++v) kept[size_t(v)] = v;
    last = size_t(V);
    if (o.top_k > 0 && o.top_k < V) {
      last = size_t(o.top_k);
      std::nth_element(kept.begin(), kept.begin() + std::ptrdiff_t(last), kept.end(), before);
    }
    if (o.top_p >= 1) return 0;
    double total = 0, sum = 0;
    for (size_t i = 0; i < last; ++i) total += std::exp(key[size_t(kept[i])]);
    const auto less = [&](int64_t a, int64_t b) { return before(b, a); };
    std::make_heap(kept.begin(), kept.begin() + std::ptrdiff_t(last), less);
    size_t from = last;  // the largest move to the end, one by one; the one that crosses top_p is kept
    while (from > 0 && (from == last || sum < o.top_p * total)) {
      std::pop_heap(kept.begin(), kept.begin() + std::ptrdiff_t(from), less);
      sum += std::exp(key[size_t(kept[--from])]);
    }
    return from;
  }

  const SamplingOptions& o;
  int64_t V;
  size_t last = 0;
  std::vector<double> key, noise;
  std::vector<int64_t> kept;
};

}  // namespace FASTLSTM_ISA
