"""Faults for the shipped kernels: what is changed where, and which kernels it is to break. test_mutations.py compiles each.

A mutation replaces one piece of text, found exactly once, in a copy of csrc/. Six classes; `step` has no shared memory,
no barrier, no copy to wait for and no other block to hand to, so only the first two concern it.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    file: str  # in csrc/cuda
    old: str
    new: str
    cpp: str = "bfloat_t"  # the one type that is compiled; float shares operands between lanes where the others do not


FORWARD, BACKWARD = "tile_forward persistent_forward", "tile_backward persistent_backward"
BOTH = "persistent_forward persistent_backward"

MUTATIONS = (
    Mutation(ROW, "step", "step.cuh", "load_floats(hw + g * H, product);", "load_floats(hw + (g ^ 1) * H, product);"),
    Mutation(TAIL, "step", "step.cuh", "return b < count;", "return b <= count;"),
    Mutation(
        TAIL,
        "step",
        "step.cuh",
        "b < before.count ? p.c + (before.first + b) * H + u",
        "b <= before.count ? p.c + (before.first + b) * H + u",
    ),
    Mutation(
        ROW, FORWARD + " " + BACKWARD, "product.cuh", "first = {a.x, b.x, a.y, b.y}", "first = {b.x, a.x, a.y, b.y}"
    ),
    Mutation(
        ROW,
        FORWARD,
        "product.cuh",
        "h = load_vector<uint4>(tile + (lane / 4)",
        "h = load_vector<uint4>(tile + (lane / 4 ^ 1)",
    ),
    Mutation(TAIL, FORWARD, "forward.cuh", "unit() < H ? H - place(i) : 0, t.", "unit() <= H ? H - place(i) : 0, t."),
    Mutation(TAIL, "persistent_forward", "forward.cuh", "left -= step; }", "left -= 2 * step; }"),
    Mutation(TAIL, FORWARD, "block.cuh", "i < min_of(valid, 8)", "i < min_of(valid, 9)"),
    Mutation(
        TAIL,
        "persistent_forward",
        "forward.cuh",
        "at < width ? now.count : 0",
        "at <= width ? now.count : 0",
    ),
    Mutation(
        BARRIER, "tile_forward", "forward.cuh", "        __syncthreads();\n        exchange.par", "        exchange.par"
    ),
    Mutation(BARRIER, FORWARD, "forward.cuh", "    if (t.k_splits > 1) __syncthreads();\n", ""),
    Mutation(
        BARRIER,
        "persistent_forward",
        "exchange.cuh",
        "    __syncwarp();\n    return strip;",
        "    return strip;",
        "float",
    ),
    Mutation(WAIT, FORWARD, "forward.cuh", "    wait_copies<1>();\n", "    wait_copies<2>();\n"),
    Mutation(WAIT, BOTH, "exchange.cuh", "while (any_unset(v) && !lost", "while (false && !lost"),
    # forward's cases have one group of loads that all bring the same
    Mutation(WAIT, "persistent_backward", "memory.cuh", "most = larger(most, largest(v[i]));", "most = largest(v[0]);"),
    Mutation(WAIT, BOTH, "exchange.cuh", "if (unset(v[i])) v[i] =", "if (i == 0) v[i] ="),
    Mutation(TAIL, BOTH, "exchange.cuh", "min_of(at.unit, last)", "at.unit"),
    Mutation(
        ORDER,
        "persistent_forward",
        "memory.cuh",
        "larger(larger(v.x, v.y), larger(v.z, v.w)); }",
        "larger(larger(v.x, v.y), v.z); }",
    ),
    Mutation(
        ORDER,
        "persistent_forward",
        "memory.cuh",
        '  PTX("st.relaxed.gpu.global.b32 [%0], %1;", (), (IN_L(to), IN_R(word)));',
        "  *to = word;",
    ),
    Mutation(UNSET, "tile_forward", "forward.cuh", "i < 16 * t.row_tiles * pieces;", "i < 8 * t.row_tiles * pieces;"),
    Mutation(
        UNSET, FORWARD, "forward.cuh", "    for_own_states([](float* place, float* state) { *place = *state; });\n", ""
    ),
    Mutation(
        TAIL, BACKWARD, "backward.cuh", "first + 8 * h < H ? H - at.unit : 0", "first + 8 * h <= H ? H - at.unit : 0"
    ),
    Mutation(
        ROW,
        "persistent_backward",
        "exchange.cuh",
        "unit += l.unit_step + (over ? l.set_step : 0);",
        "unit += l.unit_step;",
    ),
    Mutation(
        TAIL,
        BACKWARD,
        "backward.cuh",
        "if (!has(which, j) || b >= now.count || u >= H) continue;",
        "if (!has(which, j) || b >= now.count || u > H) continue;",
    ),
    Mutation(ROW, FORWARD, "forward.cuh", "shares == 1 ? 3 : 1 + i % 2)", "shares == 1 ? 3 : 1 + i / 2)"),
    Mutation(
        ROW, BACKWARD, "backward_place.cuh", "parts == 1 ? 3 : 1 + share / halves", "parts == 1 ? 3 : 1 + share % 2"
    ),
    Mutation(BARRIER, "tile_backward", "backward.cuh", "      if constexpr (Exchange::kWhole) __syncthreads();\n", ""),
    Mutation(BARRIER, BACKWARD, "backward.cuh", "    if (t.k_splits > 1) __syncthreads();\n", ""),
    Mutation(WAIT, BACKWARD, "backward.cuh", "    wait_copies<1>();\n", "    wait_copies<2>();\n"),
    Mutation(
        WAIT,
        "persistent_backward",
        "backward.cuh",
        "          exchange.receive(v, where, patience);",
        "          v[0] = {};",
    ),
    Mutation(
        ORDER,
        "persistent_backward",
        "memory.cuh",
        '  PTX("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};", (),\n'
        "      (IN_L(to), IN_R(v.x), IN_R(v.y), IN_R(v.z), IN_R(v.w)));",
        "  store_vector(to, v);",
    ),
    Mutation(UNSET, "tile_backward", "backward.cuh", "      exchange.clear();\n", ""),
    Mutation(
        UNSET,
        BACKWARD,
        "backward.cuh",
        "    for_own_states([](float* place, float* state) { *place = *state; });\n",
        "",
    ),
)
