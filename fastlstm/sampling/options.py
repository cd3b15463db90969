"""How to draw, checked once, and the streams between calls of an engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from fastlstm.memory import check_whole
from fastlstm.modules.checks import State
from fastlstm.sampling.weights import Sizes, Weights

PRIME_ROWS_PER_CALL = 1024  # rows of a prime that an engine feeds in one call: between calls Ctrl-C is heard
FAILED = -2  # an engine writes it where there was nothing to draw


@dataclass(frozen=True)
class Options:
    """See `Decoder.start`. stop: sequences of ids; follows: (S, V) int32 or None; starts: (num,) int32 or None."""

    num: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: tuple[tuple[int, ...], ...]
    follows: Tensor | None
    starts: Tensor | None
    position: int

    @classmethod
    def of(
        cls,
        sizes: Sizes,
        num: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
        stop: Sequence[int | Sequence[int]],
        automaton: tuple[Tensor, int | Tensor] | None,
        position: int,
    ) -> Options:
        """Check the arguments of `Decoder.start`. Raises ValueError."""
        stop = [_plain(one) for one in _plain(stop)] if isinstance(_plain(stop), Sequence) else stop
        for name, value, right, expected in (
            ("num", num, is_int(num, 1), "an int of 1 or more"),
            (
                "temperature",
                temperature,
                _is_number(temperature) and 0 <= temperature < math.inf,
                "a finite number of 0 or more",
            ),
            ("top_k", top_k, is_int(top_k, 0), "0 (all) or an int above it"),
            ("top_p", top_p, _is_number(top_p) and 0 < top_p <= 1, "a number above 0, at most 1"),
            ("seed", seed, is_int(seed, 0) and seed < 1 << 64, "an int in 0 … 2⁶⁴ - 1"),
            ("position", position, is_int(position, 0) and position < 1 << 63, "an int in 0 … 2⁶³ - 1"),
            ("stop", stop, isinstance(stop, Sequence), "a sequence of ids, or of sequences of ids"),
        ):
            if not right:
                raise ValueError(f"{name} is {value!r}, expected {expected}")
        sequences = tuple(tuple(map(_plain, one)) if isinstance(one, Sequence) else (one,) for one in stop)
        for one in sequences:
            if not one or not all(is_int(v, 0) and v < sizes.V for v in one):
                raise ValueError(f"stop holds {list(one)}, expected ids in 0 … {sizes.V - 1}, at least one")
        follows, starts = _automaton(automaton, sizes.V, num)
        num, top_k, seed, position = int(num), min(int(top_k), sizes.V), int(seed), int(position)
        return cls(num, float(temperature), top_k, float(top_p), seed, sequences, follows, starts, position)


def _plain(value: object) -> object:
    """numpy's integers and arrays, and tensors, as Python's numbers and lists; any other value as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_int(value: object, least: int) -> bool:
    whole = type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
    return whole and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)


def _automaton(automaton: tuple[Tensor, int | Tensor] | None, V: int, num: int) -> tuple[Tensor | None, Tensor | None]:
    if automaton is None:
        return None, None
    follows, start = automaton
    check_whole(("the automaton", follows), ("its start", start if isinstance(start, Tensor) else None))
    S = follows.shape[0] if follows.dim() == 2 else 0
    if S == 0 or follows.shape[1] != V or follows.is_floating_point() or int(follows.max()) >= S:
        raise ValueError(
            f"automaton is {follows.dtype} with shape {list(follows.shape)}, expected integers (states, {V}) below the "
            "number of states, -1 where an id is forbidden"
        )
    starts = start if isinstance(start, Tensor) else torch.as_tensor(start, device="cpu")
    if (
        starts.is_floating_point()
        or starts.is_complex()
        or starts.shape not in ((), (num,))
        or int(starts.min()) < 0
        or int(starts.max()) >= S
    ):
        raise ValueError(f"the automaton's start is {start}, expected one state, or {num}, in 0 … {S - 1}")
    # copies: what the user does to either afterwards does not show. Below -1 an id is as forbidden as at it.
    follows = follows.detach().to(torch.int64).clamp(min=-1).to(torch.int32).contiguous()
    return follows, starts.detach().to(torch.int32).expand(num).clone(memory_format=torch.contiguous_format)


EngineRun = Callable[["Streams", Options, Tensor, Tensor | None], None]


@dataclass
class Streams:
    """Where each stream is.

    ids: the last rows, (≥ 1, num), of which the first `before` were not drawn and the first `fed` were fed; h, c: (L, num, P)
    and (L, num, H); ended: (num,) uint8; states: (num,) int32 of the automaton, or None; steps: ids drawn.
    """

    ids: Tensor
    before: int
    h: Tensor
    c: Tensor
    ended: Tensor
    states: Tensor | None
    fed: int
    steps: int = 0

    @classmethod
    def begin(
        cls,
        weights: Weights,
        options: Options,
        prime: Tensor | Sequence[int],
        state: State | None,
        run: EngineRun,
    ) -> Streams:
        """Feed the prime but for its last id: one stream for all where all begin alike."""
        num, device = options.num, weights.w_out.device
        ids = _prime(prime, weights.sizes.V, num).to(device)
        h, c = _state(weights, num, state)
        alike = ids.shape[1] == h.shape[1] == 1
        if not alike:
            ids, h, c = ids.expand(-1, num), h.expand(-1, num, -1), c.expand(-1, num, -1)
        ended = torch.zeros(1 if alike else num, dtype=torch.uint8, device=device)
        ids = ids.contiguous()
        streams = cls(ids, len(ids), h.clone().contiguous(), c.clone().contiguous(), ended, None, 0)
        for first in range(
            0, len(ids) - 1, PRIME_ROWS_PER_CALL
        ):  # each piece begins with the one id that the piece before left
            streams.ids = ids[first : first + PRIME_ROWS_PER_CALL + 1]
            run(streams, options, streams.ids, None)
        states = None if options.starts is None else options.starts.to(device).clone()
        last = ids[-1:].expand(1, num).contiguous()
        h, c = (s.expand(-1, num, -1).contiguous() for s in (streams.h, streams.c))
        return cls(last, 1, h, c, ended.expand(num).contiguous(), states, 0)

    def extend(self, run: EngineRun, options: Options, length: int, log_probs: Tensor | None) -> Tensor:
        """Draw `length` rows, (length, num), of which the last that a stop may reach back into are kept."""
        known = len(self.ids)
        buffer = self.ids.new_full((known + length, options.num), -1)
        buffer[:known] = self.ids
        run(self, options, buffer, log_probs)
        self.steps += length
        reach = max([1, *(len(one) - 1 for one in options.stop)])
        first = max(self.before, len(buffer) - reach)
        self.ids, self.before = buffer[first:].clone(), 0
        self.fed = len(self.ids) - 1
        return buffer[known:]

    def state(self) -> State:
        return self.h.clone(), self.c.clone()


def _prime(prime: Tensor | Sequence[int], V: int, num: int) -> Tensor:
    ids = prime if isinstance(prime, Tensor) else torch.as_tensor(prime, device="cpu")
    check_whole(("prime", ids))
    if ids.numel() == 0:
        raise ValueError("prime is empty, expected at least one id, say that of a newline")
    if ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8) or ids.dim() > 2:
        raise ValueError(f"prime is {ids.dtype} with shape {list(ids.shape)}, expected integers (n,) or (n, {num})")
    ids = ids.detach().to(torch.int64).clone()  # what the user does to the prime afterwards does not show
    ids = ids if ids.dim() == 2 else ids.reshape(-1, 1)
    if ids.shape[1] not in (1, num):
        raise ValueError(f"prime has shape {list(ids.shape)}, expected (n,) or (n, {num}), one column a stream")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= V:
        raise ValueError(f"prime holds {low if low < 0 else high}, expected ids in 0 … {V - 1}")
    return ids


def _state(weights: Weights, num: int, state: State | None) -> State:
    """(h, c) of one stream, (L, 1, ·), or of all, in the decoder's type."""
    L, H, P, _ = weights.sizes
    if state is None:
        return weights.w_out.new_zeros(L, 1, P), weights.w_out.new_zeros(L, 1, H)
    tensors = []
    for name, value, width in (("h", state[0], P), ("c", state[1], H)):
        if list(value.shape) not in ([L, width], [L, 1, width], [L, num, width]):
            raise ValueError(f"{name} has shape {list(value.shape)}, expected {[L, width]} or {[L, num, width]}")
        check_whole((name, value))
        value = value.detach().to(weights.w_out)
        tensors.append(value if value.dim() == 3 else value[:, None])
    if tensors[0].shape[1] != tensors[1].shape[1]:
        raise ValueError(f"h is of {tensors[0].shape[1]} streams and c of {tensors[1].shape[1]}, expected as many")
    return tensors[0], tensors[1]
