"""Faults for the shipped kernels: what is changed where, and which kernels it is to break. test_mutations.py compiles each.

A mutation replaces text in the statement below a comment `// MUTATE: name` in csrc/cuda. Six classes; `per_step` has no
shared memory, no barrier, no copy to wait for and no words of other blocks, so only the first two concern it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROW = "wrong fragment row"
TAIL = "off-by-one tail"
BARRIER = "missing barrier"
ORDER = "relaxed store where order matters"
WAIT = "read before the wait"
UNSET = "uninitialised shared word"
CLASSES = (ROW, TAIL, BARRIER, ORDER, WAIT, UNSET)


@dataclass(frozen=True)
class Mutation:
    what: str  # one of CLASSES
    kernels: str  # stems of the .cu files that must fail, with spaces between
    marker: str  # the name after MUTATE
    old: str  # in the marked statement
    new: str
    cpp: str = "bfloat_t"  # the one type that is compiled; float shares operands between lanes where the others do not

    def find(self, cuda: Path) -> tuple[Path, str, str]:
        """The file in csrc/cuda that has the marker, its text, and its text with the fault."""
        comment = re.compile(rf"^ *// MUTATE: {self.marker}\n", re.MULTILINE)
        places = [(path, m) for path in sorted(cuda.glob("*.cuh")) for m in comment.finditer(path.read_text())]
        assert len(places) == 1, f"MUTATE: {self.marker} is there {len(places)} times"
        path, text, begin = places[0][0], places[0][0].read_text(), places[0][1].end()
        end = begin + re.search(r"[;{}]\n", text[begin:]).end()
        statement = text[begin:end]
        assert statement.count(self.old) == 1, f"{path.name}: {self.old!r} is not once below MUTATE: {self.marker}"
        return path, text, text[:begin] + statement.replace(self.old, self.new) + text[end:]


FORWARD, BACKWARD = "single_block_forward cooperative_forward", "single_block_backward cooperative_backward"
BOTH = "cooperative_forward cooperative_backward"
LEAN = "lean_forward lean_backward"

MUTATIONS = (
    Mutation(ROW, "per_step", "per-step-gate", "g * H", "(g ^ 1) * H"),
    Mutation(TAIL, "per_step", "per-step-row-tail", "b < count", "b <= count"),
    Mutation(TAIL, "per_step", "per-step-c-before", "b < before.count", "b <= before.count"),
    Mutation(ROW, FORWARD + " " + BACKWARD, "interleave", "{a.x, b.x, a.y, b.y}", "{b.x, a.x, a.y, b.y}"),
    Mutation(ROW, FORWARD, "operand-row", "(lane / 4)", "(lane / 4 ^ 1)"),
    Mutation(TAIL, FORWARD, "weights-unit-tail", "unit() < H", "unit() <= H"),
    Mutation(TAIL, "cooperative_forward", "weights-span-tail", "left -= step", "left -= 2 * step"),
    Mutation(TAIL, FORWARD, "copy-units-tail", "min_of(valid, 8)", "min_of(valid, 9)"),
    Mutation(TAIL, "cooperative_forward", "publish-width-tail", "at < width", "at <= width"),
    Mutation(BARRIER, "single_block_forward", "step-barrier", "__syncthreads();", ""),
    Mutation(BARRIER, FORWARD, "partials-barrier", "if (t.k_splits > 1) __syncthreads();", ""),
    Mutation(BARRIER, "cooperative_forward", "strip-barrier", "__syncwarp();", "", "float"),
    Mutation(WAIT, FORWARD, "staged-wait", "wait_copies<1>", "wait_copies<2>"),
    Mutation(WAIT, BOTH, "poll-until-written", "any_not_written(v)", "false"),
    # forward's cases have one group of loads that all bring the same
    Mutation(
        WAIT, "cooperative_backward", "test-every-load", "most = larger(most, largest(v[i]));", "most = largest(v[0]);"
    ),
    Mutation(WAIT, BOTH, "poll-again", "not_written(v[i])", "i == 0"),
    Mutation(TAIL, BOTH, "row-end-clamp", "min_of(at.unit, last)", "at.unit"),
    Mutation(ORDER, "cooperative_forward " + LEAN, "largest-of-four", "larger(v.z, v.w)", "v.z"),
    Mutation(
        ORDER,
        "cooperative_forward " + LEAN,
        "publish-word",
        'PTX("st.relaxed.gpu.global.b32 [%0], %1;", (), (IN_L(to), IN_R(word)));',
        "*to = word;",
    ),
    Mutation(UNSET, "single_block_forward", "first-h-buffers", "16 * t.row_tiles", "8 * t.row_tiles"),
    Mutation(UNSET, FORWARD, "carried-c", "for_own_states([](float* place, float* state) { *place = *state; });", ""),
    Mutation(TAIL, BACKWARD, "weights-column-tail", "first + 8 * h < H", "first + 8 * h <= H"),
    Mutation(ROW, "cooperative_backward", "set-cursor", " + (over ? l.set_step : 0)", ""),
    Mutation(TAIL, BACKWARD, "backward-unit-tail", "u >= H", "u > H"),
    Mutation(ROW, FORWARD, "own-cells-row", "1 + i % 2", "1 + i / 2"),
    Mutation(ROW, BACKWARD, "backward-own-cells-row", "share / halves", "share % 2"),
    Mutation(
        BARRIER, "single_block_backward", "d-gates-barrier", "if constexpr (Exchange::kWhole) __syncthreads();", ""
    ),
    Mutation(BARRIER, BACKWARD, "backward-partials-barrier", "if (t.k_splits > 1) __syncthreads();", ""),
    Mutation(WAIT, BACKWARD, "backward-staged-wait", "wait_copies<1>", "wait_copies<2>"),
    Mutation(WAIT, "cooperative_backward", "parts-poll", "exchange.poll(v, where, timeout);", "v[0] = {};"),
    Mutation(
        ORDER,
        "cooperative_backward",
        "publish-vector",
        'PTX("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};", (),\n'
        "      (IN_L(to), IN_R(v.x), IN_R(v.y), IN_R(v.z), IN_R(v.w)));",
        "store_vector(to, v);",
    ),
    Mutation(UNSET, "single_block_backward", "clear-d-gates-buffers", "exchange.clear();", ""),
    Mutation(
        UNSET, BACKWARD, "carried-dh-dc", "for_own_states([](float* place, float* state) { *place = *state; });", ""
    ),
    # `lean`: what both directions share
    Mutation(TAIL, LEAN, "lean-spans-tail", "i < count", "i <= count"),
    Mutation(WAIT, LEAN, "lean-poll-until-written", "most() == kNotWritten", "false"),
    Mutation(WAIT, LEAN, "lean-test-every-load", "largest_of(v[t])", "largest(v[t][0])"),
    Mutation(WAIT, "lean_forward", "lean-test-every-load", "waits[t]", "t == 0 && waits[t]"),
    Mutation(WAIT, LEAN, "lean-poll-again", "not_written(v[t][i])", "i == 0"),
    # forward
    Mutation(TAIL, "lean_forward", "lean-cell-tail", "unit < H", "unit <= H"),
    Mutation(TAIL, "lean_forward", "lean-sequence-tail", "pass_row + sequence <", "pass_row + sequence <="),
    Mutation(TAIL, "lean_forward", "lean-weights-tail", "row < H", "row <= H"),
    Mutation(TAIL, "lean_forward", "lean-weights-tail", "k < H", "k <= H"),
    Mutation(WAIT, "lean_forward", "lean-given-row", "k > p.s.begin", "k > p.s.begin + 1"),
    Mutation(TAIL, "lean_forward", "lean-given-tail", "b >= rows", "b > rows"),
    Mutation(TAIL, "lean_forward", "lean-h-n-tail", "pass_row + sequence >=", "pass_row + sequence >"),
    Mutation(ROW, "lean_forward", "lean-sums-row", "2 * (lane % 4) + j", "2 * (lane % 4) + 1 - j"),
    Mutation(BARRIER, "lean_forward", "lean-barrier", "__syncthreads();", ""),
    Mutation(BARRIER, "lean_forward", "lean-parity", "parity ^= 1;", ""),
    Mutation(UNSET, "lean_forward", "lean-carried-c", "*place = *state;", ""),
    # reads the input of a row whose gates have taken its place
    Mutation(ROW, "lean_forward", "lean-fetch-order", "fetch_next(x[1], k);", "fetch(x[1], rows.at(0), row);"),
    # backward
    Mutation(TAIL, "lean_backward", "lean-backward-cell-tail", "unit < H", "unit <= H"),
    Mutation(TAIL, "lean_backward", "lean-backward-sequence-tail", "pass_row + sequence <", "pass_row + sequence <="),
    Mutation(TAIL, "lean_backward", "lean-backward-weights-tail", "column < H", "column <= H"),
    Mutation(TAIL, "lean_backward", "lean-backward-weights-tail", "at < H", "at <= H"),
    Mutation(TAIL, "lean_backward", "lean-c-before", "b >= earlier.count", "b > earlier.count"),
    Mutation(TAIL, "lean_backward", "lean-parts-tail", "pass_row + row <", "pass_row + row + 1 <"),
    Mutation(ROW, "lean_backward", "lean-gate-words", "odd ? 2 : 0", "odd ? 0 : 2"),
    Mutation(ROW, "lean_backward", "lean-backward-sums-row", "i % 2 * kPitch", "(1 - i % 2) * kPitch"),
    Mutation(WAIT, "lean_backward", "lean-parts-poll", "largest_of(word) == kNotWritten", "false"),
    Mutation(WAIT, "lean_backward", "lean-parts-poll", "largest_of(word)", "word[0]"),
    Mutation(WAIT, "lean_backward", "lean-parts-poll-again", "word[r] == kNotWritten", "r == 0"),
    Mutation(BARRIER, "lean_backward", "lean-backward-barrier", "__syncthreads();", ""),
    Mutation(BARRIER, "lean_backward", "lean-backward-parity", "parity ^= 1;", ""),
    Mutation(BARRIER, "lean_backward", "lean-sums-barrier", "__syncthreads();", ""),
    Mutation(BARRIER, "lean_backward", "lean-bias-barrier", "__syncthreads();", ""),
    Mutation(UNSET, "lean_backward", "lean-carried-dh-dc", "*place = *state;", ""),
    # several layers: one that runs ahead of the layer whose words it takes
    Mutation(WAIT, "lean_layers_forward", "lean-runs-ahead", "= alive", "= false"),
    Mutation(WAIT, "lean_layers_backward", "lean-runs-ahead-backward", "{alive}", "{false}"),
    Mutation(ROW, "lean_layers_backward", "lean-layer-above", "rows.at(1)", "rows.at(0)"),
    # the sampling loop
    Mutation(ROW, "decode", "decode-turn-before", "turn - 1", "turn - 2"),
    Mutation(ROW, "decode", "decode-bring-again", "live < before", "false"),
    Mutation(ROW, "decode", "decode-ended", "p.ended_before[b] ? -1 :", ""),
    Mutation(TAIL, "decode", "decode-stream-tail", "stream >= count", "stream > count"),
    Mutation(TAIL, "decode", "decode-score-tail", "row >= p.V", "row > p.V"),
    Mutation(TAIL, "decode", "decode-weights-tail", "left < share ? left : share", "share"),
    Mutation(TAIL, "decode", "decode-stop-reach", "first < p.drawn", "first < 0"),
    Mutation(TAIL, "decode", "decode-cut-side", "enough(of_middle)", "!enough(of_middle)"),
    Mutation(TAIL, "decode", "decode-top-k", "> most", "> most + 1"),
    Mutation(TAIL, "decode", "decode-cut-end", "> 1", "> 2"),
    Mutation(TAIL, "decode", "decode-top-p", ">= wanted", ">= 2 * wanted"),
    Mutation(TAIL, "decode", "decode-forbidden", "next[v] < 0", "next[v] < -1"),
    Mutation(TAIL, "decode", "decode-unit-tail", "warp < units", "warp <= units"),
    Mutation(BARRIER, "decode", "decode-vectors-barrier", "__syncthreads();", ""),
    Mutation(BARRIER, "decode", "decode-reduce-barrier", "__syncthreads();", ""),
    Mutation(ORDER, "decode", "decode-send", "uint64_t(turn) << 32", "uint64_t(turn + 2) << 32"),
    Mutation(WAIT, "decode", "decode-await", "uint32_t(word >> 32) != turn", "word == 0"),
    Mutation(WAIT, "decode", "decode-runs-ahead", "turn, first", "turn - 1, first"),
    Mutation(UNSET, "decode", "decode-zeros", "= 0.0f;", "= vectors(0)[i];"),
)
