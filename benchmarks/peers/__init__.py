"""Other LSTMs on the same weights and inputs, each optional: `add` adds those that can run, and the reasons of the others.

A peer is a function from a `Ready` call to `Peer`: what is timed, and what is compared (torch tensors in nn.LSTM's order:
output, h_n, c_n and, in a training step, gradients of the input and of every weight). It raises
`AbsentError` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module, util
from typing import NamedTuple

from benchmarks.layer import Ready
from benchmarks.timing import Step
from benchmarks.work import Run, Work

CPU = ("cell-loop", "compiled-loop", "onnxruntime", "jax")
GPU = ("flashrnn", "haste")
OWN_THREADS = ("onnxruntime", "jax")  # pools beside torch's, which spin for a while after a call
_WHERE = {
    "cell-loop": "loops:cells",
    "compiled-loop": "loops:compiled",
    "onnxruntime": "onnx_runtime:session",
    "jax": "jax_scan:scan",
    "flashrnn": "gpu:flashrnn",
    "haste": "gpu:haste",
}


class AbsentError(Exception):
    """A peer cannot take part; the message says why."""


class Peer(NamedTuple):
    """timed: one call as a user of that peer makes it; compared: the same call, its results as torch tensors."""

    timed: Step
    compared: Run


def add(work: Work, names: Iterable[str]) -> None:
    """Add peers to a layer's work; the reason of each that cannot take part goes to `work.skipped`."""
    if work.made is None:
        raise ValueError("peers run layers; this work is none")
    for name in names:
        module, function = _WHERE[name].split(":")
        try:
            peer = getattr(import_module(f"{__name__}.{module}"), function)(work.made)
        except AbsentError as reason:
            work.skipped[name] = str(reason)
            continue
        work.runs[name], work.checked[name] = peer.timed, peer.compared
        work.optional.add(name)


def need(package: str, advice: str = "pip install 'fastlstm[peers]'") -> None:
    """Raise AbsentError where a package is not installed."""
    if util.find_spec(package) is None:
        raise AbsentError(f"{package} is not installed ({advice})")


def plain(made: Ready, *, inference_only: bool = False) -> None:
    """Raise AbsentError unless the call is one that every LSTM has: dense, one direction, no projection."""
    call = made.call
    for wrong, what in (
        (call.case.packed, "packed sequences"),
        (call.bidirectional, "two directions"),
        (call.case.projection, "a projection"),
        (inference_only and call.train, "gradients"),
    ):
        if wrong:
            raise AbsentError(f"this peer is not written for {what}")
