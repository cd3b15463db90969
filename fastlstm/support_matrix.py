"""The matrix of feature × backend × type, as Markdown: `fastlstm doctor --matrix`, kept in docs/support.md.

It shows what the kernels take, on any machine: neither a GPU nor Triton nor nvcc is needed, since the planners are asked
about an H100 that need not be there. Only the CUDA planner is native code, so the native module must be built.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from fastlstm import backends
from fastlstm.backends import cost_model, native
from fastlstm.backends.base import BackendError
from fastlstm.backends.cuda.launch import TYPE_CODES
from fastlstm.backends.triton import planner as triton_planner
from fastlstm.ops.arguments import Spec

BACKENDS = ("cpu", "cuda", "triton", "reference")
TYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
GPU = "H100"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"

_DEVICES = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda", "reference": "cpu"}
# Backends with a choice of kernels, and the order of the kernels' columns
_GPU_BACKENDS = ("cuda", "triton")
_ORDER = ("per_step", "single_block", "cooperative", "lean", "lean_layers", "streamed")

# What differs from a dense training call of T 64, B 16, I and H 128
FEATURES: dict[str, dict[str, object]] = {
    "dense input": {},
    "packed input": {"packed": True},
    "token ids": {"token": True, "I": 0, "V": 65},
    "projection": {"projected": True, "P": 64},
    "reset": {"reset": True},
    "reverse direction (`bidirectional`)": {"reverse": True},
    "inference": {"save": 0},
    "training; cell states and gates returned": {"save": 1},
    "training with `recompute`": {"save": 2},
    "B 1": {"B": 1, "N": 64},
    "B 4096": {"B": 4096, "N": 64 * 4096},
    "H 65": {"H": 65, "P": 65, "I": 65},
    "H 1024": {"H": 1024, "P": 1024, "I": 1024},
    "H 4096": {"H": 4096, "P": 4096, "I": 4096},
    "packed ids with projection and reset": {
        **{"packed": True, "token": True, "projected": True, "reset": True},
        **{"I": 0, "V": 65, "P": 64},
    },
}


def kernels(backend: str, spec: Spec) -> tuple[str, ...]:
    """Return the kernels of a backend that take a call on some machine; empty: none does.

    A backend without a choice of kernels has one without a name. Neither its installation nor the device matters.
    """
    chosen = backends.load(backend)
    if chosen.unsupported_call(spec) is not None:
        return ()
    if backend not in _GPU_BACKENDS:
        return chosen.kernel_names
    takes = _cuda_takes if backend == "cuda" else _triton_takes
    return _sorted(kernel for kernel in chosen.kernel_names if takes(kernel, spec))


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=_ORDER.index))


def _cuda_takes(kernel: str, spec: Spec) -> bool:
    """Whether the CUDA planner has a tiling of this kernel for forward and, in training, for backward."""
    lib = cost_model.library()
    gpu, code = cost_model.description(cost_model.KNOWN[GPU], lib), TYPE_CODES[spec.dtype]
    directions = (False, True)[: 1 + spec.training]
    if kernel == "lean_layers":  # two layers in one launch
        two = (lib.choose_layers(gpu, code, spec.H, spec.B, back, 2, True) for back in directions)
        return not spec.projected and all(choice.blocks >= 0 for choice in two)
    return all(lib.choose(gpu, code, spec.H, spec.B, back, spec.projected, kernel).blocks >= 0 for back in directions)


def _triton_takes(kernel: str, spec: Spec) -> bool:
    """Whether the Triton planner has tiles of this kernel."""
    known = cost_model.KNOWN[GPU]
    device = triton_planner.GpuLimits(GPU, known.capability, known.sms, known.shared_bytes)
    math = triton_planner.how(spec.dtype.itemsize, False, device)
    options = {"projected": spec.projected, "training": spec.training, "only": kernel}
    plan = triton_planner.choose(device, spec.H, spec.B, math, **options)
    return isinstance(plan, triton_planner.TritonPlan)


def spec(feature: str, dtype: torch.dtype, device: str) -> Spec:
    """Return the call that stands for a feature."""
    sizes = {"T": 64, "B": 16, "N": 1024, "I": 128, "V": 0, "H": 128, "P": 128}
    flags = {"packed": False, "token": False, "projected": False, "reverse": False, "reset": False}
    plain = Spec(torch.device(device), dtype, **sizes, **flags, save=1)
    return replace(plain, **FEATURES[feature])


def render() -> str:
    """Return the block of docs/support.md: feature × backend with types, and feature × GPU kernel with types.

    Raises BackendError where the native module, and with it the CUDA planner, is missing.
    """
    reason = native.module_unavailable()
    if reason is not None:
        raise BackendError(f"the matrix asks the CUDA planner, which is part of the native module: {reason}")
    taken = {
        (feature, backend, name): kernels(backend, spec(feature, dtype, _DEVICES[backend]))
        for feature in FEATURES
        for backend in BACKENDS
        for name, dtype in TYPES.items()
    }
    by_backend = [
        [feature, *(_types(name for name in TYPES if taken[feature, backend, name]) for backend in BACKENDS)]
        for feature in FEATURES
    ]
    columns = [
        (backend, kernel)
        for backend in _GPU_BACKENDS
        for kernel in _sorted(name for name in backends.load(backend).kernel_names)
    ]
    by_kernel = [
        [
            feature,
            *(_types(name for name in TYPES if kernel in taken[feature, backend, name]) for backend, kernel in columns),
        ]
        for feature in FEATURES
    ]
    parts = [
        BEGIN,
        "The types that each backend takes:",
        _table(["feature", *(f"`{name}`" for name in BACKENDS)], by_backend),
        f"The types that each GPU kernel takes, by the planners' answers for an {GPU}:",
        _table(["feature", *(f"{backend} `{kernel}`" for backend, kernel in columns)], by_kernel),
        END,
    ]
    return "\n\n".join(parts)


def _types(names: Iterable[str]) -> str:
    names = list(names)
    return " ".join(names) or "–"


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(line[k]) for line in [head, *rows]) for k in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )
