"""The workload of one benchmark case: contenders that compute the same results, and the check that they do.

`cpu` is fastlstm with that backend forced (on a GPU: `cuda`, `triton`), `dispatched` is fastlstm as a user gets it,
`torch` is nn.LSTM on the same weights and inputs. `Workload.check` runs every contender once, before any timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fastlstm
from fastlstm.testing import accuracy

ContenderCall = Callable[[], Iterable[Tensor]]

# Two correct results of one type differ by rounding; fastlstm/testing/accuracy.py allows fastlstm twice nn.LSTM's own error.
# Here the question is whether the contenders do the same work, and a wrong one is off by far more than this.
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float64: 1e-12}


FORCED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # device → backends that are forced


class WrongOutputError(AssertionError):
    """A contender's result differs from the reference's. The case is not timed."""


@dataclass
class Workload:
    """The contenders of one case, ready to run.

    Attributes:
        runs: name → one call; it returns the tensors that are compared.
        reference: the contender that the others must agree with.
        exact: the reference's results in float64. With it a contender is right by the rule of fastlstm/testing/accuracy.py:
            its error is at most twice that of the reference, which computes in the same type.
        device: where the call runs, cpu or cuda.
        dtype: the type of weights and inputs.
        grad: whether gradients are recorded.
        flops: multiply-adds × 2 of one call; 0 if matrix products do not bound its time.
        bytes: weights that one call must read.
        chosen: the backend that dispatch chooses.
        checked: name → what `check` runs, if that is not what is timed (sampling is checked with argmax).
        optional: contenders that are left out if they fail.
        skipped: name → why it is not timed.
        allowed: name → its own tolerance.
        prepared: the tensors of a layer, for competitors.
        characters: characters that one call draws.
    """

    runs: dict[str, ContenderCall]
    reference: str = "torch"
    exact: ContenderCall | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    grad: bool = True
    flops: float = 0.0
    bytes: float = 0.0
    chosen: str = ""
    checked: dict[str, ContenderCall] = field(default_factory=dict)
    optional: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    prepared: Any = None
    characters: int = 0

    @property
    def tf32(self) -> bool:
        """Whether cuDNN may multiply the call's float32 as TF32."""
        return self.device == "cuda" and self.dtype == torch.float32 and torch.backends.cudnn.allow_tf32

    @property
    def within(self) -> float:
        """The relative difference that two correct results may have."""
        return ALLOWED[torch.float16] if self.tf32 else ALLOWED[self.dtype]

    @contextmanager
    def context(self, name: str) -> Iterator[None]:
        """Enter the context of a contender: the backend that its name forces, gradients on or off."""
        backends = {"dispatched": None, **{forced: forced for names in FORCED.values() for forced in names}}
        with fastlstm.backend(backends[name]) if name in backends else nullcontext(), torch.set_grad_enabled(self.grad):
            yield

    def check(self) -> None:
        """Raise WrongOutputError unless every contender returns what the reference returns.

        An optional contender that fails is skipped with the reason. So is a forced backend that cannot run the call.
        """
        expected = self._results(self.reference)
        exact = None if self.exact is None else [tensor.detach().cpu() for tensor in self.exact()]
        for name in [name for name in self.runs if name != self.reference]:
            try:
                if exact is not None:
                    check_accuracy(name, self._results(name), expected, exact, self.tf32)
                else:
                    wide = [tensor.double() for tensor in expected]
                    check_agreement(name, self._results(name), wide, self.allowed.get(name, self.within))
            except fastlstm.BackendError as reason:
                self._skip(name, reason)
            except Exception as reason:  # a competitor may raise anything; it is then not timed
                if name not in self.optional:
                    raise
                self._skip(name, reason)

    def _results(self, name: str) -> list[Tensor]:
        with self.context(name):
            return [tensor.detach() for tensor in self.checked.get(name, self.runs[name])()]

    def _skip(self, name: str, reason: Exception) -> None:
        self.skipped[name] = f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"
        del self.runs[name]


def check_accuracy(
    name: str, actual: list[Tensor], expected: list[Tensor], exact: list[Tensor], tf32: bool = False
) -> None:
    """Raise WrongOutputError unless each tensor's error is at most twice that of `expected`, or 4 eps (NaN fails).

    exact: the results in float64; tf32: eps is that of TF32.
    """
    _require_as_many(name, actual, expected)
    for index, (tensor, same_type, reference) in enumerate(zip(actual, expected, exact, strict=True)):
        try:
            accuracy.check(f"{name}, tensor {index}", tensor, reference, same_type, tf32)
        except accuracy.WrongResultError as error:
            raise WrongOutputError(str(error)) from None


def _require_as_many(name: str, actual: list[Tensor], expected: list[Tensor]) -> None:
    if len(actual) != len(expected):
        raise WrongOutputError(f"{name} returns {len(actual)} tensors, expected {len(expected)}")


def check_agreement(name: str, actual: Iterable[Tensor], expected: list[Tensor], allowed: float) -> None:
    """Raise WrongOutputError unless ‖got − expected‖ ≤ allowed · ‖expected‖ for each tensor (NaN fails)."""
    actual = list(actual)
    _require_as_many(name, actual, expected)
    for index, (tensor, reference) in enumerate(zip(actual, expected, strict=True)):
        if tensor.shape != reference.shape:
            raise WrongOutputError(
                f"{name}, tensor {index}: shape {tuple(tensor.shape)}, expected {tuple(reference.shape)}"
            )
        error = (tensor.double() - reference).norm().item()
        size = reference.norm().item()
        if not error <= allowed * size:
            raise WrongOutputError(f"{name}, tensor {index}: off by {error / max(size, 1e-300):.3g}, allowed {allowed}")


def fastlstm_contenders(device: str) -> tuple[str, ...]:
    """Return the names of fastlstm's contenders: each backend that can be forced on this device, then as dispatched."""
    return (*FORCED[device], "dispatched")


def chosen_by_dispatch(module: torch.nn.Module, x: object) -> str:
    """Return the name of the backend that `module(x)` runs on as dispatched ("torch" for torch's own path)."""
    with fastlstm.backend(None):
        return fastlstm.explain(module, x).split()[2]


def geometric_mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def same_weights(module: torch.nn.Module, source: torch.nn.Module) -> torch.nn.Module:
    """Return `module` with the weights of `source`."""
    weights: Mapping[str, Tensor] = source.state_dict()
    module.load_state_dict(weights)
    return module
