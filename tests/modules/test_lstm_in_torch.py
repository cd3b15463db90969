"""fastlstm.LSTM inside the rest of torch: types, autocast, torch.func, checkpoint, hooks, deferred construction."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrize, rnn
from torch.utils.checkpoint import checkpoint

import fastlstm
from fastlstm.testing import accuracy
from tests.modules.pairs import leaves, pair, results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 3}], ids=str)
def test_half_and_double_results_pass_the_rule_of_accuracy(options: dict, dtype: torch.dtype) -> None:
    exact, lstm = pair(3, 5, **options)
    torch_lstm = copy.deepcopy(exact).to(dtype)
    lstm = lstm.to(dtype)
    exact = copy.deepcopy(torch_lstm).double()  # of the rounded weights
    x = torch.randn(6, 4, 3).to(dtype)
    actual, by_torch, reference = (results(m, v) for m, v in ((lstm, x), (torch_lstm, x), (exact, x.double())))
    for a, b, c in zip(actual, reference, by_torch, strict=True):
        assert a.dtype == dtype
        if dtype == torch.float64:
            torch.testing.assert_close(a, b)
        else:
            accuracy.check(str(a.shape), a, b, c)


def test_conversion_to_other_types_and_back_keeps_the_results() -> None:
    lstm, x = fastlstm.LSTM(3, 5, 2), torch.randn(4, 2, 3)
    expected = lstm(x)[0]
    for change, dtype in ((lstm.half, torch.float16), (lstm.bfloat16, torch.bfloat16), (lstm.double, torch.float64)):
        assert {p.dtype for p in change().parameters()} == {dtype}
        assert {v.dtype for v in leaves(lstm(x.to(dtype)))} == {dtype}
        assert all(w is getattr(lstm, n) for n, w in zip(lstm._flat_weights_names, lstm._flat_weights, strict=True))
    torch.testing.assert_close(lstm.float()(x)[0], expected, rtol=0.1, atol=0.05)


def test_a_half_module_takes_a_float32_cell_state() -> None:
    lstm, x = fastlstm.LSTM(3, 5).bfloat16(), torch.randn(2, 4, 3).bfloat16()
    h, c = torch.zeros(1, 4, 5).bfloat16(), torch.randn(1, 4, 5)
    out, (_, c_n) = lstm(x, (h, c))
    torch.testing.assert_close(out, lstm(x, (h, c.bfloat16()))[0], rtol=0.05, atol=0.02)
    assert c_n.dtype == torch.bfloat16


def _as_nn_lstm(lstm: nn.LSTM, x: Tensor) -> list[Tensor]:
    """What nn.LSTM gives under autocast; where oneDNN has no half types (a CPU without AVX-512) it raises, not rounds."""
    try:
        return leaves(lstm(x))
    except RuntimeError as error:
        if "primitive descriptor" not in str(error):
            raise
    with torch.autocast("cpu", enabled=False):
        return [v.bfloat16() for v in leaves(lstm(x))]


@pytest.mark.parametrize("packed", [False, True])
def test_autocast_gives_types_and_results_of_nn_lstm(packed: bool) -> None:
    """Types as nn.LSTM's, which leaves float64 and, on the CPU, packed input alone; gradients in the parameters' type."""
    for dtype in (torch.float32, torch.float64):
        torch_lstm, lstm = pair(3, 5, 2, dtype=dtype)
        x = torch.randn(6, 4, 3, dtype=dtype)
        x = rnn.pack_padded_sequence(x, [6, 4, 4, 1]) if packed else x
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual, expected = leaves(lstm(x)), _as_nn_lstm(torch_lstm, x)
        assert [v.dtype for v in actual] == [v.dtype for v in expected]
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.02)
        sum(v.float().sum() for v in actual).backward()
        assert {p.grad.dtype for p in lstm.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_one_row_and_of_half_input_gives_its_type(dtype: torch.dtype) -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(1, 1, 3)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        out = lstm(x)[0]
        assert out.dtype == lstm(x.to(dtype))[0].dtype == dtype
    with torch.no_grad():
        torch.testing.assert_close(out.float(), lstm(x)[0], rtol=0.05, atol=0.02)


def test_functional_call_and_per_sample_gradients() -> None:
    lstm = fastlstm.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)
    named = dict(lstm.named_parameters())
    x = torch.randn(5, 6, 3, dtype=torch.float64)  # six samples

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(lstm, weights, (x,))[0].square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 1))({n: p.detach() for n, p in named.items()}, x)
    loss(named, x).backward()
    for n, p in named.items():
        torch.testing.assert_close(per_sample[n].sum(0), p.grad)
    one = grad(loss)(named, x[:, 2])
    torch.testing.assert_close({n: g[2] for n, g in per_sample.items()}, {n: g.detach() for n, g in one.items()})


@pytest.mark.parametrize("packed", [False, True])
def test_per_sample_gradients_by_torch_s_own_api(packed: bool) -> None:
    """Its weights are of a class that knows nn.LSTM's functions alone."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    x, outs_and_grads = torch.randn(3, 5, 2, dtype=torch.float64), []
    if packed:
        x = rnn.pack_padded_sequence(x, [5, 4, 2], batch_first=True)
    for lstm in pair(2, 4, 2, batch_first=True, bidirectional=True, dtype=torch.float64):
        out = leaves(call_for_per_sample_grads(lstm, loss_reduction="sum", batch_size=3)(x))[0]
        out.square().sum().backward()
        outs_and_grads.append([out.detach(), *(p.grad_sample for p in lstm.parameters())])
    assert outs_and_grads[0][1].shape == (3, 16, 2)
    torch.testing.assert_close(outs_and_grads[1], outs_and_grads[0])


def test_vmap_over_an_ensemble_of_weights_and_jvp() -> None:
    models = [fastlstm.LSTM(3, 4, 2, batch_first=True, dtype=torch.float64) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(models)
    x = torch.randn(2, 5, 3, dtype=torch.float64)

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(models[0], weights, (x,))[0]

    torch.testing.assert_close(vmap(call, (0, None))(stacked, x), torch.stack([m(x)[0] for m in models]))
    torch_lstm = nn.LSTM(3, 4, 2, batch_first=True, dtype=torch.float64)
    torch_lstm.load_state_dict(models[0].state_dict())
    v = torch.randn_like(x)
    torch.testing.assert_close(jvp(lambda x: models[0](x)[0], (x,), (v,)), jvp(lambda x: torch_lstm(x)[0], (x,), (v,)))


def test_activation_checkpointing_changes_no_result() -> None:
    torch_lstm, lstm = pair(3, 5, 2, dropout=0.5)

    class Checkpointed(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.lstm = module

        def forward(self, x: Tensor, hx: object = None):
            return checkpoint(self.lstm, x, hx, use_reentrant=False)

    x, by_module = torch.randn(6, 4, 3, requires_grad=True), []
    for module in (lstm, Checkpointed(lstm), Checkpointed(torch_lstm)):
        torch.manual_seed(3)
        by_module.append(results(module, x))
    torch.testing.assert_close(by_module[1], by_module[0])
    torch.testing.assert_close(by_module[1], by_module[2])


def test_anomaly_mode_names_the_op() -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(6, 4, 3)
    with torch.autograd.detect_anomaly(check_nan=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lstm(x)[0].sum().backward()
        out = lstm(x)[0]
        with pytest.raises(RuntimeError, match="returned nan values"):
            (out.sum() * float("nan")).backward()


def test_hooks_are_called_as_on_nn_lstm() -> None:
    def watched(lstm: nn.Module) -> tuple:
        calls = []
        lstm.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
        lstm.register_forward_hook(lambda m, args, out: calls.append(("forward", args[0].clone(), out[0].clone())))
        lstm.register_full_backward_hook(
            lambda m, into, outof: calls.append(("backward", *(g for g in outof if g is not None)))
        )
        lstm.register_full_backward_pre_hook(lambda m, outof: calls.append(("pre", len(outof))))
        lstm.weight_ih_l0.register_hook(lambda g: g * 3)
        torch.manual_seed(1)
        x = torch.randn(2, 1, 3, requires_grad=True)
        out = lstm(x)[0]
        out.register_hook(lambda g: g + 1)
        out.sum().backward()
        lstm(x.detach())
        with torch.no_grad():
            lstm(x)
        return calls, x.grad, lstm.weight_ih_l0.grad

    seen = [watched(lstm) for lstm in pair(3, 5)]
    torch.testing.assert_close(seen[1][1:], seen[0][1:])
    for a, b in zip(seen[1][0], seen[0][0], strict=True):
        assert a[0] == b[0]
        torch.testing.assert_close(a[1:], b[1:])


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrised_weights_give_the_results_of_nn_lstm() -> None:
    collected, x = [], torch.randn(6, 4, 3)
    for lstm in pair(3, 5, 2):
        nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
        parametrize.register_parametrization(lstm, "weight_ih_l1", Doubled())
        collected.append(results(lstm, x))
        with parametrize.cached():
            collected.append(results(lstm, x)[:1])
        with torch.no_grad():
            collected.append(leaves(lstm(torch.ones(1, 1, 3))))
        parametrize.remove_parametrizations(lstm, "weight_hh_l0")
        collected.append(results(lstm, x)[:1])
    assert type(lstm) is not fastlstm.LSTM
    torch.testing.assert_close(collected[4:], collected[:4])


def test_deferred_construction_on_meta() -> None:
    with torch.device("meta"):
        lstm = fastlstm.LSTM(3, 5, 2)
    assert {p.device.type for p in lstm.parameters()} == {"meta"}
    assert lstm(torch.randn(4, 2, 3, device="meta"))[0].shape == (4, 2, 5)
    lstm.to_empty(device="cpu")
    torch.manual_seed(0)
    lstm.reset_parameters()
    torch.manual_seed(0)
    expected, x = nn.LSTM(3, 5, 2), torch.randn(4, 2, 3)
    torch.testing.assert_close(lstm(x), expected(x))
    with torch.device("meta"):
        again = fastlstm.LSTM(3, 5, 2)
    again.load_state_dict(expected.state_dict(), assign=True)
    torch.testing.assert_close(again(x), expected(x))
    assert fastlstm.LSTM(3, 5, device="cpu", dtype=torch.float64).weight_ih_l0.dtype == torch.float64


def test_fake_tensors_give_shapes_and_types() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for dtype in (torch.float32, torch.bfloat16):
            lstm = fastlstm.LSTM(3, 5, 2, bidirectional=True, dtype=dtype)
            out, (h, c) = lstm(torch.randn(7, 2, 3, dtype=dtype))
            assert (out.shape, h.shape, c.shape) == ((7, 2, 10), (4, 2, 5), (4, 2, 5))
            assert {out.dtype, h.dtype, c.dtype} == {dtype}
            out.sum().backward()


def test_torch_fx_traces_it_as_one_node() -> None:
    """As a module of torch.nn is; its own forward is not traced, and cannot be."""

    class Model(nn.Module):
        def __init__(self, lstm: nn.Module) -> None:
            super().__init__()
            self.lstm, self.head = lstm, nn.Linear(5, 2)

        def forward(self, x: Tensor, hx: object = None) -> tuple[Tensor, Tensor]:
            out, state = self.lstm(x, hx)
            return self.head(out), state[1]

    x, hx, graphs = torch.randn(4, 2, 3), (torch.randn(1, 2, 5), torch.randn(1, 2, 5)), []
    for lstm in pair(3, 5):
        model = Model(lstm)
        graph = torch.fx.symbolic_trace(model)
        graphs.append([(node.op, str(node.target), str(node.args)) for node in graph.graph.nodes])
        for initial in (None, hx):
            torch.testing.assert_close(graph(x, initial), model(x, initial))
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(lstm)
    assert graphs[0] == graphs[1]
    options = nn.Sequential(fastlstm.LSTM(3, 5, return_cell_states=True))
    assert len(torch.fx.symbolic_trace(options)(x)) == 3


def test_a_data_parallel_replica_gives_the_results_of_nn_lstm() -> None:
    """Its parameters are plain tensors that lead back to those of the module."""
    outs_and_grads, x = [], torch.randn(6, 4, 3)
    for lstm in pair(3, 5, 2):
        replica = lstm._replicate_for_data_parallel()
        for name, p in lstm.named_parameters():
            setattr(replica, name, p * 1)
        out = replica(x)[0]
        out.sum().backward()
        with torch.no_grad():
            outs_and_grads.append([out, replica(x[:1, :1])[0], *(p.grad for p in lstm.parameters())])
        assert [type(v) for v in replica._flat_weights] == [Tensor] * 8
    torch.testing.assert_close(outs_and_grads[1], outs_and_grads[0])


def test_threads_may_share_a_module_in_shared_memory() -> None:
    from concurrent.futures import ThreadPoolExecutor

    lstm = fastlstm.LSTM(3, 5, 2).share_memory()
    xs = [torch.randn(n % 3 + 1, 1, 3) for n in range(24)]
    with torch.no_grad():
        expected = [lstm(x)[0] for x in xs]

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return lstm(x)[0]

    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(call, xs)), expected)
    assert all(p.is_shared() for p in lstm.parameters())


def test_70000_steps_are_as_two_calls_that_hand_the_state_on() -> None:
    """As many as two calls that hand the state on; the gradient too."""
    lstm, x = fastlstm.LSTM(2, 3), torch.randn(70_000, 1, 2, requires_grad=True)
    first, state = lstm(x[:30_000])
    second, state = lstm(x[30_000:], state)
    out, last_state = lstm(x)
    torch.testing.assert_close((out, last_state), (torch.cat([first, second]), state))
    (expected,) = torch.autograd.grad(second[-1].sum(), x)
    torch.testing.assert_close(torch.autograd.grad(out[-1].sum(), x)[0], expected)
