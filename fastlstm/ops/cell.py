"""What is particular to a recurrent cell, and the sizes of a stack of its layers.

Every size of a module follows from `Stack`: the weights of a layer and direction, their shapes, the shapes of the state.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Cell(NamedTuple):
    """A kind of cell.

    name: torch's name of it; gates: one letter a gate, in the order in which a weight's rows hold them; states: what goes
    from step to step.
    """

    name: str
    gates: str
    states: tuple[str, ...]


LSTM = Cell("LSTM", "ifgo", ("h", "c"))


class LayerWeights(NamedTuple):
    """The weights of one layer and direction; None for what the module does not have."""

    w_ih: Tensor  # (4H, I), in later layers (4H, directions · P)
    w_hh: Tensor  # (4H, P)
    b_ih: Tensor | None  # (4H,)
    b_hh: Tensor | None  # (4H,)
    w_hr: Tensor | None  # (P, H)

    @property
    def bias(self) -> Tensor | None:
        """The sum of both biases, (4H,); their gradients are two tensors, as nn.LSTM's, so hooks may change one in place."""
        return None if self.b_ih is None else self.b_ih.sub(self.b_hh, alpha=-1)  # add would hand one gradient to both

    def bias_in(self, dtype: torch.dtype) -> Tensor | None:
        """The sum of both biases, each widened to a type before."""
        if self.b_ih is None or self.b_ih.dtype == dtype:
            return self.bias
        return self._replace(b_ih=self.b_ih.to(dtype), b_hh=self.b_hh.to(dtype)).bias


class Stack(NamedTuple):
    """The sizes of a module: L layers, D directions, I input features, H units, P features of h a direction.

    Made by `Stack.of`; the last three follow from the others, and are kept because every call asks for them.
    """

    cell: Cell
    layers: int
    directions: int
    input_size: int
    hidden_size: int
    proj_size: int  # 0: no projection
    bias: bool
    P: int  # features of h a direction: H, or the projection's
    per_direction: int  # weights of one layer and direction in torch's flat list
    weight_shapes: tuple[tuple[int, ...], ...]  # of torch's flat list

    @staticmethod
    def of(module: nn.RNNBase, cached: bool = False) -> Stack:
        """The sizes of an LSTM module; cached: look them up, which takes a fifth of the time and no compiler can trace."""
        sizes = (module.num_layers, 2 if module.bidirectional else 1, module.input_size, module.hidden_size)
        return (_stack_again if cached else _stack)(*sizes, module.proj_size, bool(module.bias))

    def state_shapes(self, B: int) -> tuple[tuple[int, int, int], ...]:
        """The shapes of h0 and c0."""
        n = self.layers * self.directions
        return (n, B, self.P), (n, B, self.hidden_size)

    def output_may_change(self, dtype: torch.dtype, packed: bool) -> bool:
        """Whether nn.LSTM's output on a CPU may be changed in place before backward; not where oneDNN computes and keeps it."""
        return dtype != torch.float32 or packed or self.proj_size > 0

    def layer(self, weights: list[Tensor] | tuple[Tensor, ...], k: int) -> LayerWeights:
        """The weights of layer and direction number k (layer · directions + direction) from torch's flat list."""
        n = self.per_direction
        w_ih, w_hh, *rest = weights[k * n : (k + 1) * n]
        b_ih, b_hh = rest[:2] if self.bias else (None, None)
        return LayerWeights(w_ih, w_hh, b_ih, b_hh, rest[-1] if self.proj_size else None)


def _stack(L: int, D: int, I: int, H: int, proj_size: int, bias: bool) -> Stack:
    rows, P = len(LSTM.gates) * H, proj_size or H
    rest = ((rows, P), *((rows,), (rows,)) * bias, *((P, H),) * bool(proj_size))
    shapes = (*((rows, I), *rest) * D, *((rows, P * D), *rest) * (D * (L - 1)))
    return Stack(LSTM, L, D, I, H, proj_size, bias, P, len(rest) + 1, shapes)


_stack_again = lru_cache(maxsize=1024)(_stack)
