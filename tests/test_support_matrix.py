"""docs/support.md: its matrix is what the doctor makes from the code, and the code does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastlstm import backends, cli, dispatch, support_matrix
from fastlstm.backends import native
from fastlstm.backends.base import BackendError
from fastlstm.support_matrix import BACKENDS, FEATURES, TYPES, kernels, render, spec

PAGE = Path(__file__).parent.parent / "docs" / "support.md"

needs_native = pytest.mark.skipif(native.module_unavailable() is not None, reason=str(native.module_unavailable()))


@needs_native
def test_the_page_is_what_the_doctor_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--matrix"])
    assert not end.value.code
    printed = capsys.readouterr().out.rstrip("\n")
    assert printed.startswith(support_matrix.BEGIN)
    assert printed.endswith(support_matrix.END)
    assert printed in PAGE.read_text(encoding="utf-8"), (
        "put what `fastlstm doctor --matrix` prints into docs/support.md"
    )


@needs_native
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", TYPES)
def test_the_cpu_and_the_reference_backend_take_what_the_matrix_says(feature: str, name: str) -> None:
    for backend in ("cpu", "reference"):
        call = spec(feature, TYPES[name], "cpu")
        assert bool(kernels(backend, call)) == (dispatch.unsupported_reason(backend, call) is None)


@needs_native
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("name", TYPES)
def test_a_gpu_backend_refuses_a_type_for_itself_where_the_matrix_has_none(backend: str, name: str) -> None:
    call = spec("dense input", TYPES[name], "cuda")
    refused = (dispatch.unsupported_reason(backend, call) or "").startswith("dtype is")
    assert refused == (not kernels(backend, call))


@needs_native
def test_the_matrix_names_the_kernels_that_take_a_feature() -> None:
    half = torch.bfloat16
    assert kernels("cuda", spec("projection", half, "cuda")) == ("per_step",)
    assert kernels("triton", spec("projection", half, "cuda")) == ("per_step",)
    assert "single_block" not in kernels("cuda", spec("H 1024", half, "cuda"))
    assert all(kernels("reference", spec(feature, dtype, "cpu")) for feature in FEATURES for dtype in TYPES.values())


def test_a_feature_differs_from_the_plain_call_in_what_it_names() -> None:
    plain = spec("dense input", torch.float32, "cpu")
    assert not FEATURES["dense input"]
    for feature, changes in FEATURES.items():
        call = spec(feature, torch.float32, "cpu")
        assert all(getattr(call, name) == value for name, value in changes.items())
        assert call.N == call.T * call.B or call.packed
        assert call.P == call.H or call.projected
        assert call.training == bool(call.save)
        assert (call == plain) == (not changes or feature.startswith("training; "))


def test_without_the_native_module_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module_unavailable", lambda: "it was not built")
    with pytest.raises(BackendError, match=r"the matrix asks the CUDA planner.*it was not built"):
        render()


def test_every_backend_of_the_package_is_a_column() -> None:
    assert set(BACKENDS) == set(backends._MODULES)
