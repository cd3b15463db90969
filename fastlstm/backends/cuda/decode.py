"""The sampling loop in one launch (csrc/cuda/decode.cuh), on a GPU (backend.py) or on the simulator of the tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.backends.cuda.launch import TYPE_CODES, Runtime
from fastlstm.backends.decoding import DecodeCall, DecoderWeights


def unfit(lib: Any, sms: int, shared_kib: int, sizes: tuple[int, int, int, int], stored: torch.dtype) -> str | None:
    """Why no launch takes a model, or None. sizes: layers, units, features of h, ids."""
    L, H, P, V = sizes
    if stored not in (torch.float32, torch.bfloat16):
        return f"weights are {stored}; it takes float32 and bfloat16"
    if P != H:
        return f"h is projected to {P} features"
    if lib.most_decode_layers < L:
        return f"it has {L} layers, at most {lib.most_decode_layers} fit"
    most = lib.most_decode_streams
    at = {"sms": sms, "shared_bytes": shared_kib << 10, "type_bytes": stored.itemsize}
    if not lib.plan_decode(**at, L=L, H=H, V=V, B=most, longest_stop=0).bytes:
        return f"a block's shared memory ({shared_kib} KiB) does not hold h of {H} units and {V} scores"
    return None


class Packed:
    """Weights in the order in which warps read them."""

    def __init__(self, lib: Any, weights: DecoderWeights) -> None:
        self.stored = weights.stored
        self.V, self.H = weights.w_out.shape
        self.L = len(weights.layers)
        self.columns = lib.decode_columns(self.H, self.stored.itemsize)
        self.weights = [
            self._rows(layer.w_hh.view(4, self.H, self.H).transpose(0, 1), layer.w_ih) for layer in weights.layers
        ]
        groups = -(-self.V // 4)
        out = F.pad(weights.w_out, (0, 0, 0, 4 * groups - self.V))
        self.weights.append(self._rows(out.view(groups, 4, self.H), None))
        self.starts = [layer.start.float().contiguous() for layer in weights.layers]
        self.starts.append(weights.b_out.float().contiguous())

    def _rows(self, own: Tensor, w_ih: Tensor | None) -> Tensor:
        """(units, 4, H), and likewise of w_ih (4H, H) → [unit][chunk][row][lane][number]."""
        parts = [own] if w_ih is None else [own, w_ih.view(4, self.H, self.H).transpose(0, 1)]
        numbers = 16 // self.stored.itemsize
        chunks = [
            F.pad(part.to(self.stored), (0, self.columns - self.H))
            .unflatten(2, (-1, 32, numbers))  # (unit, row, chunk, lane, number)
            .transpose(1, 2)
            for part in parts
        ]
        return torch.cat(chunks, 1).contiguous()


def plan(lib: Any, sms: int, shared_kib: int, packed: Packed, B: int, longest_stop: int) -> Any:
    """How `B` streams are drawn on a GPU (csrc/cuda/decode_args.h)."""
    return lib.plan_decode(
        sms=sms,
        shared_bytes=shared_kib << 10,
        type_bytes=packed.stored.itemsize,
        L=packed.L,
        H=packed.H,
        V=packed.V,
        B=B,
        longest_stop=longest_stop,
    )


def run(rt: Runtime, chosen: Any, packed: Packed, call: DecodeCall) -> None:
    """Launch one call as `plan` says."""
    L, H, V = packed.L, packed.H, packed.V
    rows, B = call.ids.shape
    device, T = call.ids.device, rows - call.known
    args = rt.lib.DecodeArgs()
    args.L, args.H, args.V, args.B, args.T = L, H, V, B, T
    args.known, args.fed, args.drawn, args.first_stream = call.known, call.fed, call.drawn, call.first_stream
    args.plan = chosen
    args.temperature, args.top_k, args.top_p = call.temperature, call.top_k, call.top_p
    args.seed, args.position, args.stop_count = call.seed, call.position, len(call.stop)
    for l, (weights, start) in enumerate(zip(packed.weights, packed.starts, strict=True)):
        address = rt.use("weights", weights, "in", packed.stored, weights.numel())
        args.set_layer(l, address, rt.use("start", start, "in", torch.float32, start.numel()))
    ends = torch.tensor([len(one) for one in call.stop], dtype=torch.int64, device="cpu").cumsum(0).to(device)
    stops = torch.tensor([v for one in call.stop for v in one], dtype=torch.int64, device="cpu").to(device)
    args.stops = rt.use("stops", stops, "in", torch.int64, stops.numel()) if call.stop else 0
    args.stop_ends = rt.use("stop_ends", ends, "in", torch.int64, len(call.stop)) if call.stop else 0
    if call.follows is not None:
        args.states = len(call.follows)
        args.follows = rt.use("follows", call.follows, "in", torch.int32, len(call.follows) * V)
        states = call.states.clone()
        args.state_before = rt.use("state_before", states, "in", torch.int32, B)
        args.state = rt.use("state", call.states, "state", torch.int32, B)
    args.ids = rt.use("ids", call.ids, "state", torch.int64, rows * B)
    args.log_probs = rt.use("log_probs", call.log_probs, "state", torch.float32, T * B)
    args.h = rt.use("h", call.h, "state", torch.float32, L * B * H)
    args.c = rt.use("c", call.c, "state", torch.float32, L * B * H)
    before, ended = call.ended.to(torch.int32), call.ended.to(torch.int32)
    args.ended_before = rt.use("ended_before", before, "in", torch.int32, B)
    args.ended = rt.use("ended", ended, "state", torch.int32, B)
    h_words = torch.zeros(2, L, B, H, 2, dtype=torch.int32, device=device)  # number and turn; the first turn is 1
    h_words[1, ..., 0], h_words[1, ..., 1] = call.h.view(torch.int32), 1
    score_words = torch.zeros(2, B, V, dtype=torch.int64, device=device)
    id_words = torch.zeros(2, B, dtype=torch.int64, device=device)
    args.h_words = rt.use("h_words", h_words.view(torch.int64), "state", torch.int64, 2 * L * B * H)
    args.score_words = rt.use("score_words", score_words, "state", torch.int64, 2 * B * V)
    args.id_words = rt.use("id_words", id_words, "state", torch.int64, 2 * B)
    args.status = rt.use("status", rt.status, "state", torch.int32, 1)
    rt.lib.decode(TYPE_CODES[packed.stored], args, rt.stream)
    call.ended.copy_(ended)


def sentence(chosen: Any, packed: Packed, B: int) -> str:
    """One line: streams, blocks, and where the weights are."""
    kept = sum(chosen.place(l) >= 0 for l in range(packed.L + 1))
    where = "all weights on the chip" if kept > packed.L else f"weights of {kept} of {packed.L + 1} layers on the chip"
    return f"decode, {B} stream{'s' * (B > 1)}, {chosen.blocks} blocks, {where}"
