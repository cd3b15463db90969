"""A case of the benchmarks: its output must be right before it is timed, in the context that its name says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import characters, layer, memory
from benchmarks.layer import LayerCall, shape
from benchmarks.runner import run_case
from benchmarks.suite import CASES, BenchmarkCase
from benchmarks.timing import take_turns
from benchmarks.workload import Workload, WrongOutputError, check_agreement, geometric_mean
from fastlstm import dispatch

SMALL = {
    "training": lambda: layer.layer(LayerCall(shape(5, 3, 8))),
    "forward": lambda: layer.layer(LayerCall(shape(5, 3, 8, I=4, initial=True), L=2, train=False)),
    "packed": lambda: layer.layer(LayerCall(shape(8, 5, 8, packed=True, initial=True))),
    "packed-bidirectional": lambda: layer.layer(LayerCall(shape(8, 5, 8, packed=True), bidirectional=True)),
    "projection": lambda: layer.layer(LayerCall(shape(5, 3, 8, P=3, initial=True))),
    "one-step": lambda: layer.layer(LayerCall(shape(1, 1, 8, initial=True), L=2, train=False)),
    "characters": lambda: characters.training_step(2, 8, 3, 5),
    "sampling": lambda: characters.sampling(2, 8, num=2, length=5),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_contenders_of_every_workload_agree_on_a_small_size(name: str):
    SMALL[name]().check()


def test_a_wrong_contender_is_never_timed():
    timed = []
    good = torch.ones(4)
    workload = Workload({"cpu": lambda: [good * 1.001], "torch": lambda: [good]})
    with pytest.raises(WrongOutputError, match=r"cpu, tensor 0: off by 0\.001, allowed 2e-05"):
        run_case(BenchmarkCase("any/case", lambda: workload), 0.0, lambda *_: timed.append(1))
    assert timed == []


def test_a_case_is_checked_then_timed_with_its_own_threads():
    before, seen = torch.get_num_threads(), []

    def call(name: str):
        def step() -> list[torch.Tensor]:
            seen.append((name, torch.get_num_threads()))
            return [torch.ones(1)]

        return step

    workload = Workload({name: call(name) for name in ("cpu", "dispatched", "torch")}, skipped={"jax": "not here"})
    case = BenchmarkCase("any/case", lambda: workload, threads=before + 1)
    rows = run_case(case, 0.0, lambda turns, rounds: (seen.append("timing"), take_turns(turns, rounds)))
    first, then = seen[: seen.index("timing")], seen[seen.index("timing") :]
    assert first[:3] == [(name, before + 1) for name in ("torch", "cpu", "dispatched")]
    assert len(then) > 3 * 3
    assert torch.get_num_threads() == before
    assert [(row.contender, row.threads) for row in rows] == [
        (name, before + 1) for name in ("cpu", "dispatched", "torch", "jax")
    ]
    assert rows[0].rounds >= 3


@pytest.mark.parametrize(
    ("got", "match"),
    [
        ([torch.ones(3)], "returns 1 tensors, expected 2"),
        ([torch.ones(3), torch.ones(3)], r"tensor 1: shape \(3,\), expected \(2,\)"),
        ([torch.ones(3), torch.full((2,), float("nan"))], "tensor 1: off by nan"),
        ([torch.ones(3), torch.zeros(2)], "tensor 1: off by 1, allowed"),
    ],
)
def test_disagreement_names_contender_and_tensor(got: list[torch.Tensor], match: str):
    with pytest.raises(WrongOutputError, match=match):
        check_agreement("mine", got, [torch.ones(3).double(), torch.ones(2).double()], 1e-3)


def _with_error(size: float) -> torch.Tensor:
    return torch.ones(64) + size * torch.tensor([1.0, -1.0]).repeat(32)


def test_a_contender_is_right_within_twice_the_error_of_torch_in_the_same_type(monkeypatch: pytest.MonkeyPatch):
    """TF32's own error is far above that of float32, so no fixed number can hold both to what they can do."""
    exact, torch_error = torch.ones(64, dtype=torch.float64), 1e-3

    def check(size: float, **options: object) -> None:
        runs = {"cuda": lambda: [_with_error(size)], "torch": lambda: [_with_error(torch_error)]}
        Workload(runs, exact=lambda: [exact], **options).check()

    check(1.9e-3)
    with pytest.raises(WrongOutputError, match=r"cuda, tensor 0: relative error 0\.0021, allowed 0\.002"):
        check(2.1e-3)
    torch_error = 0.0  # by luck, as of one number: then the type's own eps
    with pytest.raises(WrongOutputError):
        check(1e-5)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    check(3.8e-3, device="cuda")
    with pytest.raises(WrongOutputError):
        check(4e-3, device="cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with pytest.raises(WrongOutputError):
        check(1e-5, device="cuda")


def test_a_contender_with_too_few_tensors_is_wrong_by_either_rule():
    runs = {"cpu": lambda: [torch.ones(2)], "torch": lambda: [torch.ones(2), torch.ones(2)]}
    for exact in (None, lambda: [torch.ones(2).double()] * 2):
        with pytest.raises(WrongOutputError, match="cpu returns 1 tensors, expected 2"):
            Workload(dict(runs), exact=exact).check()


def test_a_character_models_step_is_judged_by_float64_and_its_gpu_case_is_in_the_suite():
    workload = characters.training_step(1, 8, 3, 5)
    assert all(tensor.dtype == torch.float64 for tensor in workload.exact())
    assert {case.name for case in CASES if case.group == "gpu-characters"} == {
        "gpu-characters/2x128-B50-T50",
        "gpu-characters/2x512-B64-T64",
    }


def test_check_runs_each_contender_under_its_backend(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTLSTM_BACKEND", "reference")
    seen = {}

    def run(name: str):
        def call() -> list[torch.Tensor]:
            seen[name] = (dispatch.requested_backend(), torch.is_grad_enabled())
            return [torch.ones(1)]

        return call

    Workload({name: run(name) for name in ("cpu", "dispatched", "torch")}, grad=False).check()
    assert seen == {"cpu": ("cpu", False), "dispatched": (None, False), "torch": ("reference", False)}


def test_a_workload_names_the_backend_that_dispatch_chooses():
    workload = layer.layer(LayerCall(shape(5, 3, 8)))
    assert workload.chosen in ("cpu", "torch", "reference")


def test_sampling_is_checked_with_argmax_and_timed_with_drawing():
    workload = characters.sampling(1, 8, length=20)
    first, second = (workload.checked["torch"]()[0] for _ in range(2))
    assert torch.equal(first, second)
    assert workload.runs["torch"]()[0].shape == (20, 1)


def test_names_are_unique_and_the_quick_part_has_every_kind_of_row():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.group for case in CASES if case.quick} >= {"training", "forward", "packed", "one-step", "sampling"}


def test_saved_bytes_counts_each_storage_once_and_no_parameter():
    weight = torch.nn.Parameter(torch.ones(1000))
    x = torch.ones(50, requires_grad=True)

    def call() -> torch.Tensor:
        y = x.exp()  # saves its result: 200 bytes, which the product below saves once more
        return (y * y[:10].sum()).sum() * weight.sum()

    assert memory.saved_bytes(call, [weight]) < 4 * 1000
    assert memory.saved_bytes(lambda: x.exp(), []) == 200
    assert memory.saved_bytes(lambda: x.detach().exp(), []) == 0


def test_recompute_saves_less_and_both_less_than_torch():
    rows = {row.contender: row for row in memory.rows(16, 4, 16)}
    assert rows["recompute"].p50 < rows["cpu"].p50 < rows["torch"].p50
    assert rows["cpu"].ratio == rows["torch"].p50 / rows["cpu"].p50


def test_the_geometric_mean_of_1_and_4_is_2():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_flops_of_a_layer_count_every_product_of_its_steps():
    # one row, I 2, H 3: 4 gates · 3 units · (2 + 3) inputs, each a multiplication and an addition
    assert LayerCall(shape(1, 1, 3, I=2), train=False).flops == 2 * 4 * 3 * 5
    assert LayerCall(shape(1, 1, 3, I=2)).flops == 3 * 2 * 4 * 3 * 5
    assert LayerCall(shape(1, 1, 3, I=2, P=2), train=False).flops == 2 * (4 * 3 * (2 + 2) + 2 * 3)
    two = LayerCall(shape(1, 1, 3, I=2), L=2, bidirectional=True, train=False)
    assert two.flops == 2 * 2 * 4 * 3 * (2 + 3) + 2 * 2 * 4 * 3 * (6 + 3)
    assert LayerCall(shape(4, 2, 3, I=3, packed=True), train=False).flops == (4 + 1) * 2 * 4 * 3 * 6  # lengths 4 and 1
