"""Several layers, or both directions of one, in one launch of the kernel `lean` (csrc/cuda/lean_layers_forward.cu).

A layer runs on its own blocks, one step behind the layer below, and multiplies that layer's h with W_ih on the chip: no
product of the input stands between two layers, and L layers take T + L - 1 steps. Directions run side by side. Backward
likewise, from the last layer to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastlstm.backends.cuda.launch import (
    ForwardLayer,
    LaunchPlan,
    Runtime,
    StepRows,
    input_chunks,
)
from fastlstm.backends.cuda.launch_backward import BackwardLayer
from fastlstm.ops.arguments import Grads, OpInputs, Saved


def forward(rt: Runtime, plan: LaunchPlan, layers: Sequence[OpInputs], chained: bool) -> list[tuple[Tensor, ...]]:
    """Run layers or directions in one launch.

    Args:
        plan: `forward` is the choice of `planner.layers`.
        layers: their inputs, the lowest layer's first. chained: of each but the first, x is where h of the one before is
            to be written; else they are independent (two directions).

    Returns:
        Of each what `fastlstm.ops.reference.forward` returns.
    """
    _require_one_type(layers)
    made = []
    for i, inputs in enumerate(layers):
        above = layers[i + 1] if chained and i + 1 < len(layers) else None
        steps = StepRows.of(inputs.rows, inputs.h0.shape[0], inputs.batch_sizes, inputs.reverse)
        h = None if above is None else above.x.view(steps.starts[-1], inputs.H)
        layer = ForwardLayer(rt, "lean", inputs, steps, h=h, below=chained and i > 0)
        layer.args.t = plan.forward.t
        made.append(layer)
    if made[0].N:
        _run(rt, plan, made)
    return [layer.results() for layer in made]


def _require_one_type(layers: Sequence[OpInputs]) -> None:
    """A launch takes all addresses for numbers of the first layer's type; sizes are compared by the launcher."""
    types = [inputs.w_hh.dtype for inputs in layers]
    if any(dtype != types[0] for dtype in types):
        raise RuntimeError(f"layers of one launch have types {types}, expected one; run them one by one")


def _run(rt: Runtime, plan: LaunchPlan, layers: Sequence[ForwardLayer]) -> None:
    code = plan.code(layers[0].h.dtype)
    on_input = [layer for layer in layers if layer.needs_input_side]

    def launch(begin: int, end: int) -> None:
        rows = [layer.steps.rows(begin, end) for layer in layers]
        for layer in layers:
            layer.args.begin, layer.args.end = begin, end
        args, first = [layer.args for layer in layers], [r.start for r in rows]
        rt.lib.lean_layers_forward(code, args, first, [r.stop - r.start for r in rows], rt.stream)

    if not on_input:
        launch(0, layers[0].steps.T)
        return
    for begin, end in input_chunks(on_input[0]):
        kept: list[Any] = [layer.input_side(begin, end) for layer in on_input]  # until it is launched
        launch(begin, end)
        del kept


def backward(
    rt: Runtime,
    plan: LaunchPlan,
    layers: Sequence[OpInputs],
    saved: Sequence[Saved],
    grads: Sequence[Grads],
    chained: bool,
) -> list[tuple[Tensor, ...]]:
    """Run the backward recurrences of layers or directions in one launch.

    Args:
        plan: `backward` is the choice of `planner.layers`.
        layers, saved, grads: of each, the lowest layer first, what forward took and kept, and the gradients that do not
            come through the layer above.

    Returns:
        Of each what `fastlstm.ops.reference.backward` returns.
    """
    _require_one_type(layers)
    made = []
    for inputs, kept, given in zip(layers, saved, grads, strict=True):
        steps = StepRows.of(kept.h, inputs.h0.shape[0], inputs.batch_sizes, inputs.reverse)
        made.append(BackwardLayer(rt, "lean", inputs, kept, given, steps))
    if made[0].N:
        exchanges = [layer.exchange(rt) for layer in made]
        for i, layer in enumerate(made):
            layer.args.t, layer.args.begin, layer.args.end = plan.backward.t, 0, layer.steps.T
            if chained and i + 1 < len(made):
                layer.use_layer_above(rt, exchanges[i + 1], layers[i + 1].w_x)
        zeros, whole = [0] * len(made), [layer.N for layer in made]
        code = plan.code(made[0].d_gates.dtype)
        rt.lib.lean_layers_backward(code, [layer.args for layer in made], zeros, whole, rt.stream)
    return [layer.results() for layer in made]
