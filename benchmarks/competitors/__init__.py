"""Other LSTMs on the same weights and inputs, each optional: `add` adds those that can run, and the reasons of the others.

A competitor is a function from a `PreparedLayer` to a `Competitor`: what is timed, and what is compared (torch tensors in
nn.LSTM's order: output, h_n, c_n and, in a training step, the gradients of the input and of every weight). It raises
`AbsentError`, with the reason, if it cannot run the call.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module, util
from typing import NamedTuple

from benchmarks.layer import PreparedLayer
from benchmarks.timing import TimedStep
from benchmarks.workload import ContenderCall, Workload

CPU = ("cell-loop", "compiled-loop", "onnxruntime", "jax")
GPU = ("flashrnn", "haste")
OWN_THREADS = ("onnxruntime", "jax")  # their thread pools spin for a while after a call
_FACTORIES = {
    "cell-loop": "loops:cells",
    "compiled-loop": "loops:compiled",
    "onnxruntime": "onnx_runtime:session",
    "jax": "jax_scan:scan",
    "flashrnn": "gpu:flashrnn",
    "haste": "gpu:haste",
}


class AbsentError(Exception):
    """A competitor cannot run a call; the message says why."""


class Competitor(NamedTuple):
    """timed: one call as a user of that library makes it; compared: the same call, its results as torch tensors."""

    timed: TimedStep
    compared: ContenderCall


def add(workload: Workload, names: Iterable[str]) -> None:
    """Add competitors to the workload of a layer; the reasons of those that cannot run go to `workload.skipped`."""
    if workload.prepared is None:
        raise ValueError("competitors run layers; this workload is none")
    for name in names:
        module, function = _FACTORIES[name].split(":")
        try:
            competitor = getattr(import_module(f"{__name__}.{module}"), function)(workload.prepared)
        except AbsentError as reason:
            workload.skipped[name] = str(reason)
            continue
        workload.runs[name], workload.checked[name] = competitor.timed, competitor.compared
        workload.optional.add(name)


def require(package: str, advice: str = "pip install 'fastlstm[competitors]'") -> None:
    """Raise AbsentError if a package is not installed."""
    if util.find_spec(package) is None:
        raise AbsentError(f"{package} is not installed ({advice})")


def require_plain(prepared: PreparedLayer, *, inference_only: bool = False) -> None:
    """Raise AbsentError unless the call is dense, in one direction and without projection."""
    call = prepared.call
    for wrong, what in (
        (call.case.packed, "packed sequences"),
        (call.bidirectional, "two directions"),
        (call.case.projection, "a projection"),
        (inference_only and call.train, "gradients"),
    ):
        if wrong:
            raise AbsentError(f"this competitor is not written for {what}")
