// Spreads the sampling loop over a GPU (decode_args.h).
#include <algorithm>

#include "decode_args.h"

namespace fastlstm::cuda {
namespace {

constexpr int kStreamsDrawnEverywhere = 2;  // a guess: a draw takes less time than sending an id to all blocks

// Puts the weights of as many layers as fit into shared memory; returns whether all do.
bool place(DecodePlan& plan, int shared_bytes, int type_bytes, int L, int H, int V) {
  int at = decode_other_bytes(plan, L, H, V, type_bytes);
  bool all = at <= shared_bytes;
  for (int l = 0; l <= L; ++l) {
    const int64_t bytes = int64_t(decode_share(plan, L, V, l)) * decode_unit_bytes(L, H, l, type_bytes);
    const bool fits = at + bytes <= shared_bytes;
    plan.place[l] = fits ? at : -1;
    at += fits ? int(bytes) : 0;
    all = all && fits;
  }
  plan.bytes = at <= shared_bytes ? at : 0;
  return all;
}

}  // namespace

DecodePlan plan_decode(int sms, int shared_bytes, int type_bytes, int L, int H, int V, int B, int longest_stop) {
  DecodePlan plan{};
  if (L < 1 || L > kMostDecodeLayers || B < 1 || B > kMostDecodeStreams || H < 1 || V < 1) return plan;
  for (plan.tile = 1; plan.tile < B && plan.tile < kDecodeTile;) plan.tile *= 2;
  plan.everywhere = B <= kStreamsDrawnEverywhere && longest_stop <= 1;
  const int least = (H + sms - 1) / sms;
  // h of all layers is worth shared memory, but not more than half of it
  plan.blocks = 1, plan.keeps_h = B <= plan.tile;
  if (plan.keeps_h && decode_other_bytes(plan, L, H, V, type_bytes) > shared_bytes / 2) plan.keeps_h = 0;
  for (int units = std::max(least, kDecodeWarps); units >= least; --units) {
    plan.units = units, plan.blocks = (H + units - 1) / units;
    if (place(plan, shared_bytes, type_bytes, L, H, V)) break;
  }
  return plan;
}

}  // namespace fastlstm::cuda
