"""What a backend is: one class that says which calls it can run and runs them, registered by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from fastlstm.backends.decoding import DecoderRun, DecoderWeights
from fastlstm.ops.arguments import Grads, OpInputs, Saved, Spec

_registered: dict[str, Backend] = {}
# backend → the kernel that `force` asks for. One variable for all backends: what carries it from forward to the thread of
# backward (dispatch.requested) needs to know of no other.
forced_kernels: ContextVar[Mapping[str, str]] = ContextVar("fastlstm_kernels", default=MappingProxyType({}))


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run, or none can; the message says why and what to do."""


class UnfitError(BackendError):
    """A backend learned at the launch that it cannot run the call; nothing was done."""


class RefusedError(UnfitError):
    """A launch that fits was refused by the device; nothing was done, and no such launch is tried again."""


class Backend:
    """Runs the op on one kind of kernels.

    `fastlstm.ops.validation` has checked the arguments of a call and made them contiguous before they come here.
    """

    name: ClassVar[str]
    kernel_names: ClassVar[tuple[str, ...]] = ("",)  # that `force` takes; one without a name where there is no choice
    decodes: ClassVar[bool] = False  # whether it has a sampling loop (`decoder`)

    def unsupported_reason(self, spec: Spec) -> str | None:
        """Why this backend cannot run the call, with what to do, or None."""
        return self.unsupported_call(spec) or self.unavailable(spec.device) or self.no_plan(spec)

    def unsupported_call(self, spec: Spec) -> str | None:
        """Why its kernels take no such call on any machine (a type, a feature), or None."""
        return None

    def unavailable(self, device: torch.device) -> str | None:
        """Why it runs nothing here (not installed, another device), with what to do, or None."""
        return None

    def no_plan(self, spec: Spec) -> str | None:
        """Why no kernel fits the call on this device, or None."""
        return None

    def describe(self, spec: Spec) -> str:
        """One line on what would run, beginning with the backend's name."""
        raise NotImplementedError

    def kernels(self, spec: Spec) -> tuple[str, ...]:
        """The names of the kernels that would run, forward's first; a backend of one kernel has one without a name."""
        return ("",)

    @contextmanager
    def force(self, kernel: str | None) -> Iterator[None]:
        """Use one kernel inside a `with` block, by its name; None or "": choose as usual.

        Backward of a call made there uses it too, in whatever thread it runs. Raises ValueError for an unknown name.
        """
        if kernel and kernel not in self.kernel_names:
            known = ", ".join(filter(None, self.kernel_names))
            expected = f"one of {known}" if known else f"none: backend '{self.name}' has no choice of kernels"
            raise ValueError(f"kernel is {kernel!r}, expected {expected}")
        token = forced_kernels.set({**forced_kernels.get(), self.name: kernel or ""})
        try:
            yield
        finally:
            forced_kernels.reset(token)

    def check(self, device: torch.device) -> None:
        """Wait for a device and raise what its kernels left for the host."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def forward(self, inputs: OpInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run one layer in one direction; returns as `fastlstm.ops.reference.forward`."""
        raise NotImplementedError

    def layers_together(self, spec: Spec, most: int, chained: bool) -> int:
        """How many of `most` layers (chained: each above the one before) or directions one launch takes; 1: no more.

        spec: the call of the first of them; all have its sizes, but for the input.
        """
        return 1

    def describe_layers(self, spec: Spec, count: int, chained: bool) -> str:
        """One line on a launch of so many layers or directions, beginning with the backend's name."""
        raise NotImplementedError

    def forward_layers(self, layers: Sequence[OpInputs], chained: bool) -> list[tuple[Tensor, ...]]:
        """Run as many layers or directions as `layers_together` said; of each what `forward` returns.

        Chained: x of each but the first is memory in which h of the one before is to be written.
        """
        raise NotImplementedError

    def backward_layers(
        self, layers: Sequence[OpInputs], saved: Sequence[Saved], grads: Sequence[Grads], chained: bool
    ) -> list[tuple[Tensor, ...]]:
        """Run the backward recurrences of what `forward_layers` ran; of each what `backward` returns.

        Chained: of all but the last, `grads.dh` is without what comes through the layer above. UnfitError: not in one.
        """
        raise UnfitError(f"backend '{self.name}' runs backward layer by layer")

    def backward(self, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the backward recurrence; returns as `fastlstm.ops.reference.backward`."""
        raise NotImplementedError

    def gradients(
        self, needs_grad: tuple[bool, ...], inputs: OpInputs, saved: Saved, grads: Grads
    ) -> tuple[Tensor | None, ...] | None:
        """Backward and all products that follow from it in one; None where the backend has no such way.

        Args:
            needs_grad: whether the gradient of x, ids, w_x, bias, w_hh and w_hr is.
            inputs, saved, grads: what forward took and returned, and the incoming gradients; checked.

        Returns:
            dx, None, dw_x, dbias, dw_hh, dw_hr, dh0, dc0; None for each that is not wanted.
        """
        return None

    def cannot_decode(self, sizes: tuple[int, int, int, int], stored: torch.dtype, device: torch.device) -> str | None:
        """Why it has no sampling loop for a model, or None.

        Args:
            sizes: layers, units, features of h, ids.
            stored: the type of the weights.
        """
        return f"backend '{self.name}' has no sampling loop"

    def decoder(self, weights: DecoderWeights) -> DecoderRun:
        """The sampling loop with these weights, in which later changes of the model do not show."""
        raise NotImplementedError


def register(name: str) -> Callable[[type[Backend]], type[Backend]]:
    """Register a Backend class under a name: `@register("cpu")`."""

    def add(cls: type[Backend]) -> type[Backend]:
        cls.name = name
        _registered[name] = cls()
        return cls

    return add


def registered() -> dict[str, Backend]:
    """The backends that were registered so far, by name."""
    return _registered
