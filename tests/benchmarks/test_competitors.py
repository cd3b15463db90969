"""Other LSTMs beside fastlstm's: they agree where they are installed, and say why where they take no part."""

from __future__ import annotations

import pytest
import torch

from benchmarks import competitors, layer
from benchmarks.competitors import gpu, loops
from benchmarks.layer import LayerCall, shape
from benchmarks.workload import Workload

DENSE = {
    "training": LayerCall(shape(4, 3, 8, I=5, initial=True), L=2),
    "forward": LayerCall(shape(4, 3, 8, I=5), L=2, train=False),
    "one-step": LayerCall(shape(1, 1, 8, initial=True), L=2, train=False),
}


def with_competitor(call: LayerCall, name: str) -> Workload:
    workload = layer.layer(call)
    competitors.add(workload, (name,))
    return workload


@pytest.mark.parametrize("call_name", DENSE)
@pytest.mark.parametrize("name", ["cell-loop", "onnxruntime", "jax"])
def test_a_competitor_agrees_with_torch_in_every_output_and_gradient(name: str, call_name: str):
    workload = with_competitor(DENSE[call_name], name)
    if name in workload.skipped:
        expected = "gradients" if name == "onnxruntime" and call_name == "training" else "is not installed"
        assert expected in workload.skipped[name]
        return
    workload.check()
    assert name in workload.runs, workload.skipped
    workload.runs[name]()


@pytest.mark.slow
@pytest.mark.parametrize("call_name", ["training", "forward"])
def test_the_compiled_loop_agrees_with_torch(call_name: str):
    workload = with_competitor(DENSE[call_name], "compiled-loop")
    if "C++ compiler" in workload.skipped.get("compiled-loop", ""):
        pytest.skip(workload.skipped["compiled-loop"])
    workload.check()
    assert "compiled-loop" in workload.runs, workload.skipped


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (LayerCall(shape(4, 3, 8, packed=True)), "packed sequences"),
        (LayerCall(shape(4, 3, 8), bidirectional=True), "two directions"),
        (LayerCall(shape(4, 3, 8, P=4)), "a projection"),
    ],
)
def test_a_competitor_that_cannot_run_a_layer_is_skipped_with_the_reason(call: LayerCall, reason: str):
    for name in (*competitors.CPU, *competitors.GPU):
        workload = with_competitor(call, name)
        assert name not in workload.runs
        assert reason in workload.skipped[name]


def test_a_gpu_competitor_says_that_it_needs_one():
    for name in competitors.GPU:
        assert with_competitor(DENSE["forward"], name).skipped[name] == "this competitor runs on a GPU"


def test_a_competitor_without_its_package_is_skipped_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(competitors.util, "find_spec", lambda package: None)
    assert (
        with_competitor(DENSE["forward"], "jax").skipped["jax"]
        == "jax is not installed (pip install 'fastlstm[competitors]')"
    )


def test_a_competitor_that_is_wrong_or_fails_is_left_out_with_the_reason():
    right = [torch.ones(2)]

    def fails() -> list[torch.Tensor]:
        raise RuntimeError("no kernel\nfor this size")

    runs = {"torch": lambda: right, "cpu": lambda: right, "off": lambda: [torch.zeros(2)], "broken": fails}
    workload = Workload(runs, optional={"off", "broken"})
    workload.check()
    assert set(workload.runs) == {"torch", "cpu"}
    assert workload.skipped["off"].startswith("WrongOutputError: off, tensor 0: off by 1")
    assert workload.skipped["broken"] == "RuntimeError: no kernel"


def test_competitors_run_layers_only():
    with pytest.raises(ValueError, match="competitors run layers"):
        competitors.add(Workload({"torch": lambda: []}), ("jax",))


def test_the_cell_loop_shares_the_parameters_of_the_lstm():
    lstm = torch.nn.LSTM(3, 4, 2)
    x, zero = torch.randn(2, 1, 3), torch.zeros(2, 1, 4)
    with torch.no_grad():
        before = loops.loop_of(lstm)(x, zero, zero)[0]
        lstm.weight_hh_l1.mul_(2)
        torch.testing.assert_close(loops.loop_of(lstm)(x, zero, zero)[0], lstm(x)[0])
        assert not torch.equal(before, lstm(x)[0])


H100, A100, V100, T4, A40 = (
    gpu.TorchDeviceInfo(9, 0, 132),
    gpu.TorchDeviceInfo(8, 0, 108),
    gpu.TorchDeviceInfo(7, 0, 80),
    gpu.TorchDeviceInfo(7, 5, 40),
    gpu.TorchDeviceInfo(8, 6, 84),
)


@pytest.mark.parametrize(
    ("size", "dtype", "device", "forward", "algorithm"),
    [
        ((64, 16, 128), torch.float32, H100, True, "persist static small H"),
        ((64, 16, 192), torch.float32, H100, True, "persist static small H"),
        ((64, 16, 192), torch.float32, H100, False, "standard"),
        ((64, 16, 256), torch.float32, H100, True, "standard"),
        ((64, 16, 256), torch.bfloat16, H100, True, "standard"),
        ((64, 16, 256), torch.float16, H100, True, "persist static"),
        ((64, 16, 1024), torch.float16, A100, False, "persist static"),
        ((64, 16, 1152), torch.float16, A100, True, "standard"),
        ((64, 17, 256), torch.float16, A100, True, "standard"),
        ((64, 136, 256), torch.float16, A100, True, "standard"),
        ((64, 16, 256), torch.float16, A40, True, "standard"),
        ((64, 16, 256), torch.float16, T4, True, "standard"),
        ((64, 80, 256), torch.float16, V100, True, "standard"),
        ((10, 32, 256), torch.float16, V100, True, "persist static"),
        ((10, 48, 256), torch.float16, V100, True, "standard"),
        ((64, 16, 128), torch.float64, H100, True, "standard"),
    ],
)
def test_cudnn_algorithm_follows_the_rules_of_torch(size, dtype, device, forward, algorithm):
    assert gpu.cudnn_algorithm(LayerCall(shape(*size), dtype=dtype), device, forward) == algorithm


def test_only_plain_layers_get_a_persistent_kernel():
    for call in (
        LayerCall(shape(64, 16, 128, packed=True)),
        LayerCall(shape(64, 16, 128, P=64)),
        LayerCall(shape(64, 16, 256), L=2, dtype=torch.float16),
        LayerCall(shape(64, 16, 256), bidirectional=True, dtype=torch.float16),
    ):
        assert gpu.cudnn_algorithm(call, H100) == "standard"


def test_swapping_gates_twice_restores_their_order():
    value = torch.arange(8.0)
    assert gpu.swapped(value).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert torch.equal(gpu.swapped(gpu.swapped(value)), value)
