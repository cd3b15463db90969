"""What one benchmark is: contenders that do the same work, and the check that they do.

`cpu` is fastlstm with that backend forced (on a GPU: `cuda`, `triton`), `dispatched` is fastlstm as a user gets it,
`torch` is nn.LSTM on the same weights and inputs. `Work.check` runs every contender once and must pass before any timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import fastlstm

if TYPE_CHECKING:
    from benchmarks.layer import Ready

Run = Callable[[], Iterable[Tensor]]

# Two right results of one type differ by rounding; fastlstm/testing/accuracy.py allows fastlstm twice nn.LSTM's own error.
# Here the question is whether the contenders do the same work, and a wrong one is off by far more than this.
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float64: 1e-12}


FORCED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # the column "dispatched" comes on top


class WrongOutputError(AssertionError):
    """A contender's result differs from the judge's: nothing of this case may be timed."""


@dataclass
class Work:
    """One case made ready.

    runs: name → one call that returns what is compared; judge: the contender the others must agree with, run once;
    flops: multiply-adds × 2 of one call, 0 where products are not what bounds it; bytes: weights that one call must read;
    checked: what `check` runs where that is not what is timed (sampling: argmax); allowed: name → its own tolerance;
    grad: whether gradients are recorded; chosen: what dispatch takes; skipped: name → why it is not timed;
    optional: those that may be left out; made: a layer's tensors, for peers; characters: drawn by one call.
    """

    runs: dict[str, Run]
    judge: str = "torch"
    dtype: torch.dtype = torch.float32
    grad: bool = True
    flops: float = 0.0
    bytes: float = 0.0
    chosen: str = ""
    checked: dict[str, Run] = field(default_factory=dict)
    optional: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    made: Ready | None = None
    characters: int = 0

    @property
    def within(self) -> float:
        """The relative difference that two right results may have; cuDNN may multiply float32 as TF32."""
        tf32 = self.made is not None and self.made.call.device == "cuda" and torch.backends.cudnn.allow_tf32
        return ALLOWED[torch.float16] if tf32 and self.dtype == torch.float32 else ALLOWED[self.dtype]

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """The context of a contender: the backend that its name forces, gradients on or off."""
        backends = {"dispatched": None, **{forced: forced for names in FORCED.values() for forced in names}}
        with fastlstm.backend(backends[name]) if name in backends else nullcontext(), torch.set_grad_enabled(self.grad):
            yield

    def check(self) -> None:
        """Raise WrongOutputError unless every contender returns what the judge returns.

        An optional one that fails is left out with the reason, and so is a forced backend that cannot run the call.
        """
        expected = [tensor.double() for tensor in self._results(self.judge)]
        for name in [name for name in self.runs if name != self.judge]:
            try:
                agree(name, self._results(name), expected, self.allowed.get(name, self.within))
            except fastlstm.BackendError as reason:
                self._leave_out(name, reason)
            except Exception as reason:  # a peer may fail in ways of its own; what matters is that it is not timed
                if name not in self.optional:
                    raise
                self._leave_out(name, reason)

    def _results(self, name: str) -> list[Tensor]:
        with self.inside(name):
            return [tensor.detach() for tensor in self.checked.get(name, self.runs[name])()]

    def _leave_out(self, name: str, reason: Exception) -> None:
        self.skipped[name] = f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"
        del self.runs[name]


def agree(name: str, got: Iterable[Tensor], expected: list[Tensor], allowed: float) -> None:
    """Raise WrongOutputError unless ‖got − expected‖ ≤ allowed · ‖expected‖ for each tensor (NaN fails)."""
    got = list(got)
    if len(got) != len(expected):
        raise WrongOutputError(f"{name} returns {len(got)} tensors, expected {len(expected)}")
    for index, (mine, right) in enumerate(zip(got, expected, strict=True)):
        if mine.shape != right.shape:
            raise WrongOutputError(f"{name}, tensor {index}: shape {tuple(mine.shape)}, expected {tuple(right.shape)}")
        off = (mine.double() - right).norm().item()
        size = right.norm().item()
        if not off <= allowed * size:
            raise WrongOutputError(f"{name}, tensor {index}: off by {off / max(size, 1e-300):.3g}, allowed {allowed}")


def columns(device: str) -> tuple[str, ...]:
    """The contenders that are fastlstm: each backend that can be forced on this device, and as dispatched."""
    return (*FORCED[device], "dispatched")


def chosen_by_dispatch(module: torch.nn.Module, x: object) -> str:
    """Return the name of the backend that `module(x)` runs on as dispatched ("torch" for torch's own path)."""
    with fastlstm.backend(None):
        return fastlstm.explain(module, x).split()[2]


def geometric_mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> torch.nn.Module:
    """Return `ours` with the weights of `theirs`."""
    weights: Mapping[str, Tensor] = theirs.state_dict()
    ours.load_state_dict(weights)
    return ours
